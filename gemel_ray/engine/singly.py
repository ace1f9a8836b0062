"""A batch that fails is tried frame by frame: one that a model cannot take must not cost its neighbours an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemel_ray.spec.answers import Answer
from gemel_ray.vision.tasks import Image

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Stands where one frame's answer would; `reason` says what its own forward pass failed with."""

    reason: str


Given = Answer | None | Unanswered


def answered(ask: Callable[[Sequence[Image]], Sequence[Answer | None]], images: Sequence[Image]) -> Sequence[Given]:
    """What `ask` gives for the frames. Where all of them fail by themselves too, the error of the batch is raised."""
    try:
        return ask(images)
    except Exception:
        if len(images) == 1:
            raise
        found = [_alone(ask, image) for image in images]
        if all(isinstance(each, Unanswered) for each in found):
            raise
        return found


def _alone(ask: Callable[[Sequence[Image]], Sequence[Answer | None]], image: Image) -> Given:
    try:
        return ask([image])[0]
    except Exception as error:
        log.warning("a frame of %d x %d fails its batch", *image.shape[:2], exc_info=True)
        return Unanswered(f"{type(error).__name__}: {error}")

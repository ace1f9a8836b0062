"""What a feed gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gemel_ray.spec.answers import Box

Image = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class FeedFrame:
    """One frame: uint8, H x W x 3, RGB; `label` and `boxes` (score 1) where the feed knows them."""

    index: int
    time_s: float
    image: Image
    label: str | None = None
    boxes: tuple[Box, ...] | None = None
    # 'train' or 'test' where the data itself fixes it.
    split: str | None = None


class Feed(Protocol):
    """A camera, clip or folder. `vocabulary` holds the class names its labels may carry, None without labels."""

    name: str
    fps: float
    vocabulary: frozenset[str] | None

    def frames(self) -> Iterator[FeedFrame]:
        """All frames in order of time, from the first one at every call."""
        ...

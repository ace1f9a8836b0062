"""Views of training frames: flipped and shifted, and answered by the original.

Where scenes differ from frame to frame and there are few of them, merged models soon know every training frame by
heart; views are more of the same kind, without a label needed (Beyer et al., CVPR 2022: teacher and student see one
and the same crop). Measured on two ten-class strangers with 1,500 images, all their layers shared, 450 steps: .86 / .83
of the originals' accuracy on the gate instead of .77 / .79. A fixed camera's frames differ little; there a trial's
time is better spent on the frames themselves (five cameras, 150 steps: .93 instead of .98 at worst).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from gemel_ray.training.data import QueryData, SplitData, run_model
from gemel_ray.vision.metrics import compare
from gemel_ray.vision.tasks import Image, Task

# Of a frame's side, the furthest that a view is shifted.
_SHIFT_FRACTION = 1 / 8
# Training frames that are looked at to see how well they are known.
_SAMPLE = 500


def viewed(train: SplitData, places: Sequence[int] | np.ndarray, rng: np.random.Generator) -> list[Image]:
    """Frames at `places`, each one flipped left to right half of the time and shifted at random."""
    return [_view(train.images[place], rng) for place in places]


def taught(images: list[Image], labels: np.ndarray, task: Task, original: nn.Module) -> SplitData:
    """Frames with the original's answers to them. The feed's labels hold for views as for frames."""
    logits, answers = run_model(original, task, images)
    return SplitData(tuple(images), labels, logits=logits, answers=tuple(answers))


def overfit_fraction(data: QueryData, model: nn.Module) -> float:
    """How much better a model agrees with its original on frames that it learned from than on the validation split."""
    train, validation = data.splits["train"], data.splits["validation"]
    places = np.linspace(0, len(train.images) - 1, min(_SAMPLE, len(train.images)), dtype=int)
    known = replace(
        train,
        images=tuple(train.images[place] for place in places),
        answers=tuple(train.answers[place] for place in places),
    )
    return _agreement(data.task, known, model) - _agreement(data.task, validation, model)


def _agreement(task: Task, split: SplitData, model: nn.Module) -> float:
    return compare(split.answers, run_model(model, task, split.images)[1]).estimate


def _view(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    down, right = int(height * _SHIFT_FRACTION), int(width * _SHIFT_FRACTION)
    top, left = rng.integers(0, 2 * down + 1), rng.integers(0, 2 * right + 1)
    flipped = image[:, ::-1] if rng.random() < 0.5 else image
    padded = np.pad(flipped, ((down, down), (right, right), (0, 0)), mode="reflect")
    return np.ascontiguousarray(padded[top : top + height, left : left + width])

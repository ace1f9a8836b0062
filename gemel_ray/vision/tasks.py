"""Tasks: how frames become a model's input, and a model's output becomes answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from gemel_ray.spec.answers import Answer, Box, Classified, Detected
from gemel_ray.spec.errors import ModelError, brief
from gemel_ray.spec.workload import ModelSpec, Query
from gemel_ray.vision.models import task_of

# ImageNet's channel statistics: what torchvision's classification weights were trained with.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_USUAL_HEIGHT_WIDTH = (360, 640)
_MOST_SIZES = "(most models were made for 224)"

Image = np.ndarray[Any, np.dtype[np.uint8]]


class Task(Protocol):
    """One of the two kinds of question. Frames are uint8, H x W x 3, RGB."""

    classes: tuple[str, ...]

    def pixels(self, image: Image) -> Image:
        """The frame at the size the model sees it, still uint8: what is worth keeping for training."""
        ...

    def prepare(self, images: Sequence[Image], device: torch.device | str = "cpu") -> Any:  # noqa: ANN401
        """What the model's forward takes, on the device."""
        ...

    def answers(self, outputs: Any, images: Sequence[Image]) -> list[Answer]:  # noqa: ANN401
        """One answer a frame from what the forward gave."""
        ...


def task_for(spec: ModelSpec, score_threshold: float = 0.5) -> Task:
    """The task of a model spec."""
    if task_of(spec) == "classification":
        return ClassificationTask(spec.classes, spec.input_size)
    return DetectionTask(spec.classes, score_threshold)


@torch.inference_mode()
def check_takes_frames(model: nn.Module, query: Query) -> None:
    """Raise ModelError where a model, in evaluation mode, cannot answer a blank frame: a classifier one of its
    `input_size`, a detector one of a usual size, since how large its frames are, the feed alone says."""
    task, size = task_for(query.model), query.model.input_size
    detects = task_of(query.model) == "detection"
    blank = np.zeros((*(_USUAL_HEIGHT_WIDTH if detects else (size, size)), 3), dtype=np.uint8)
    try:
        outputs = model(task.prepare([blank], next(model.parameters()).device))
        if not detects:
            _check_logits(outputs, query)
        task.answers(outputs, [blank])
    except ModelError:
        raise
    except Exception as error:  # whatever a user's own model raises
        which, remedy = (
            ("", f"correct its 'options' {query.model.options}")
            if detects
            else (f" of input_size {size}", f"choose another 'input_size' {_MOST_SIZES}, or correct its 'options'")
        )
        raise ModelError(
            f"query {query.name!r}: {query.model.builder} cannot answer a frame{which} ({brief(error)}); {remedy}"
        ) from error


def _check_logits(outputs: object, query: Query) -> None:
    """As many numbers as classes: fewer leave some never answered, more name what is none."""
    wanted = (1, len(query.model.classes))
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != wanted:
        raise ModelError(
            f"query {query.name!r}: {query.model.builder} answers a frame with {found}, not with a tensor {wanted}: a "
            "number for each of its 'classes'; name as many classes as it knows, or correct the model"
        )


class ClassificationTask:
    """Which class is in the frame."""

    def __init__(self, classes: tuple[str, ...], input_size: int) -> None:
        self.classes = classes
        self.input_size = input_size

    def pixels(self, image: Image) -> Image:
        """The frame resized to a square of `input_size`, bilinear with antialiasing."""
        if image.shape[:2] == (self.input_size, self.input_size):
            return image
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        resized = transforms.resize(tensor, [self.input_size, self.input_size], antialias=True)
        return resized.permute(1, 2, 0).numpy()

    def prepare(self, images: Sequence[Image], device: torch.device | str = "cpu") -> torch.Tensor:
        """A float batch N x 3 x S x S, normalised."""
        pixels = np.stack([self.pixels(image) for image in images])
        batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div_(255)
        return transforms.normalize(batch, list(_MEAN), list(_STD), inplace=True)

    def answers(self, outputs: torch.Tensor, images: Sequence[Image]) -> list[Answer]:
        """The likeliest class of each row of logits N x classes."""
        scores = outputs.float().softmax(dim=1).cpu().tolist()
        return [Classified(self.classes[int(np.argmax(row))], tuple(row)) for row in scores]


class DetectionTask:
    """Where objects of the classes are."""

    def __init__(self, classes: tuple[str, ...], score_threshold: float) -> None:
        self.classes = classes
        self.score_threshold = score_threshold

    def pixels(self, image: Image) -> Image:
        """The frame as it is: detectors resize by themselves, and give boxes in its coordinates."""
        return image

    def prepare(self, images: Sequence[Image], device: torch.device | str = "cpu") -> list[torch.Tensor]:
        """A list of uint8 tensors 3 x H x W; see detector_frames."""
        return [_shared(image).to(device).permute(2, 0, 1) for image in images]

    def answers(self, outputs: list[dict[str, torch.Tensor]], images: Sequence[Image]) -> list[Answer]:
        """Boxes at or above the threshold, best first."""
        return [Detected(tuple(self._boxes(found))) for found in outputs]

    def _boxes(self, found: dict[str, torch.Tensor]) -> list[Box]:
        rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
        kept = [row for row in rows if row[2] >= self.score_threshold and 0 < row[1] < len(self.classes)]
        kept.sort(key=lambda row: -row[2])
        # Own detectors may give boxes that enclose nothing, or are no numbers; no feed would take these as labels.
        return [
            Box(self.classes[label], score, left, top, right - left, bottom - top)
            for (left, top, right, bottom), label, score in kept
            if left < right and top < bottom
        ]


def _shared(image: Image) -> torch.Tensor:
    """The frame's own memory where torch takes it; what came out of Ray's object store is read-only."""
    return torch.from_numpy(image if image.flags.writeable else image.copy())

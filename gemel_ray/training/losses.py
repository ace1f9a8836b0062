"""What joint retraining minimises for one query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from gemel_ray.spec.answers import Box, Detected
from gemel_ray.spec.errors import GemelError
from gemel_ray.spec.trials import Objective
from gemel_ray.training.data import SplitData
from gemel_ray.training.dense import dense_loss
from gemel_ray.vision.tasks import DetectionTask, Task

# Softens the original's logits; merging.md's measurements all use 2.
_TEMPERATURE = 2.0
# A detector learns from every place of a frame, and a frame costs it accordingly.
_DETECTOR_SHARE = 4


def frames_a_step(task: Task, batch_size: int) -> int:
    """Frames of one training step: `batch_size` for classifiers, a quarter of it (at least 2) for detectors."""
    return max(2, batch_size // _DETECTOR_SHARE) if isinstance(task, DetectionTask) else batch_size


def batch_loss(
    model: nn.Module, task: Task, data: SplitData, places: np.ndarray, objective: Objective = "distillation"
) -> torch.Tensor:
    """The loss of one query on the frames at `places`.

    Distillation follows the original's own answers: for classifiers KL divergence of softened logits (Hinton et
    al. 2015), for dense detectors `dense_loss`, for others torchvision's detection losses on the original's boxes.
    'labels' follows the feed's, 'both' the mean of the two.
    The model must be in training mode. Raises GemelError when the loss is not a finite number: a step on it would
    make every weight NaN.
    """
    loss = _loss(model, task, data, places, objective)
    if not bool(torch.isfinite(loss)):
        raise GemelError(
            f"training diverged: the loss of a {type(model).__name__} became {loss.item()}; lower the learning rate, "
            "or check that the weights it starts from are finite"
        )
    return loss


def _loss(model: nn.Module, task: Task, data: SplitData, places: np.ndarray, objective: Objective) -> torch.Tensor:
    images = [data.images[place] for place in places]
    followed: tuple[Objective, ...] = ("distillation", "labels") if objective == "both" else (objective,)
    if isinstance(task, DetectionTask):
        return torch.stack([_detection_loss(model, task, data, places, images, each) for each in followed]).mean()
    logits = model(task.prepare(images, next(model.parameters()).device))
    return torch.stack([_classification_loss(logits, data, places, each) for each in followed]).mean()


def _classification_loss(
    logits: torch.Tensor, data: SplitData, places: np.ndarray, objective: Objective
) -> torch.Tensor:
    if objective == "labels":
        return functional.cross_entropy(logits, torch.from_numpy(data.labels[places]).to(logits.device))
    assert data.logits is not None, "distillation needs the original's logits: call with_teacher first"
    taught = torch.from_numpy(data.logits[places]).to(logits.device)
    return functional.kl_div(
        functional.log_softmax(logits / _TEMPERATURE, dim=1),
        functional.log_softmax(taught / _TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    ) * (_TEMPERATURE**2)


def _detection_loss(
    model: nn.Module, task: Task, data: SplitData, places: np.ndarray, images: list[Any], objective: Objective
) -> torch.Tensor:
    if objective == "distillation" and data.outputs is not None:
        return dense_loss(model, task, images, {name: values[places] for name, values in data.outputs.items()})
    device = next(model.parameters()).device
    boxes = [_boxes_at(data, place, objective) for place in places]
    targets = [_target(found, task.classes, device) for found in boxes]
    losses = model(task.prepare(images, device), targets)
    return torch.stack(list(losses.values())).sum()


def _boxes_at(data: SplitData, place: int, objective: Objective) -> Sequence[Box]:
    if objective == "labels":
        assert data.boxes, "the feed boxes nothing: train on the original's answers"
        return data.boxes[place]
    answer = data.answers[place]
    assert isinstance(answer, Detected), "a detector answers with boxes"
    return answer.boxes


def _target(boxes: Sequence[Box], classes: tuple[str, ...], device: torch.device) -> dict[str, torch.Tensor]:
    corners = [[box.x, box.y, box.x + box.width, box.y + box.height] for box in boxes]
    found = torch.tensor(corners, dtype=torch.float32, device=device).reshape(-1, 4)
    labels = torch.tensor([classes.index(box.label) for box in boxes], dtype=torch.int64, device=device)
    # torchvision refuses boxes without area, which rounding to 32 bits can make of thin ones.
    kept = (found[:, 2:] > found[:, :2]).all(dim=1)
    return {"boxes": found[kept], "labels": labels[kept]}

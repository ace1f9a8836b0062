"""Training the originals of a workload from its feeds' labels: what users with models of their own skip."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from gemel_ray.spec.answers import Box
from gemel_ray.spec.errors import GemelError
from gemel_ray.training.data import QueryData, SplitData, stacked
from gemel_ray.training.losses import batch_loss, frames_a_step
from gemel_ray.training.normalisation import reestimate_normalisation
from gemel_ray.vision.checkpoints import put_state
from gemel_ray.vision.models import build_model, task_of, training_device

# A detector's first gradients, from boxes all over the frame, are large: warm up, and clip the norm.
_WARM_UP_FRACTION = 0.1
_CLIP_NORM = 5.0
# Running statistics that still hold more than this of their initial values after training are estimated afresh.
_UNSETTLED = 0.01


def train_original(
    data: QueryData,
    *,
    steps: int,
    seed: int,
    ancestor: Mapping[str, torch.Tensor] | None = None,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    allow_factories: bool = False,
) -> nn.Module:
    """Train one query's model on its training split: AdamW with a cosine rate, classes drawn equally often.

    Detectors see a quarter of `batch_size` a step. `ancestor` is a state dict to start from; tensors whose shapes
    differ (a head of other classes) start afresh. Raises GemelError when training diverges.
    """
    torch.manual_seed(seed)
    model = build_model(data.query.model, allow_factories=allow_factories)
    if ancestor is not None:
        _inherit(model, ancestor)
    model.to(training_device())
    _train(model, data, steps, learning_rate, batch_size, np.random.default_rng(seed))
    if _is_unsettled(model, steps):
        reestimate_normalisation(model, data.task, data.splits["train"], seed=seed)
    _check_finite(model, data.query.name)
    return model.eval()


def _train(
    model: nn.Module, data: QueryData, steps: int, learning_rate: float, batch_size: int, rng: np.random.Generator
) -> None:
    detects = task_of(data.query.model) == "detection"
    train = data.splits["train"]
    chances, size = balanced_chances(train, detects=detects), frames_a_step(data.task, batch_size)
    warm_up_steps = int(_WARM_UP_FRACTION * steps) if detects else 0
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps, warm_up_steps))
    model.train()
    for _ in range(steps):
        places = rng.choice(len(train.images), size=min(size, len(train.images)), p=chances)
        optimiser.zero_grad(set_to_none=True)
        batch_loss(model, data.task, train, places, "labels").backward()  # type: ignore[no-untyped-call]
        if detects:
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
        optimiser.step()
        schedule.step()


def _rate(step: int, steps: int, warm_up_steps: int) -> float:
    """Cosine decay to zero, risen to linearly over the first steps."""
    risen = min(1.0, (step + 1) / warm_up_steps) if warm_up_steps else 1.0
    return risen * 0.5 * (1 + math.cos(math.pi * step / steps))


def _inherit(model: nn.Module, ancestor: Mapping[str, torch.Tensor]) -> None:
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in ancestor.items() if name in own and own[name].shape == tensor.shape}
    put_state(model, fitting, strict=False)


def _is_unsettled(model: nn.Module, steps: int) -> bool:
    """MobileNets, for one, move their statistics by 1 % a step: after 150 steps a fifth is still the initial value."""
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return any((1 - momentum) ** steps > _UNSETTLED for momentum in momenta if momentum is not None)


def _check_finite(model: nn.Module, query: str) -> None:
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise GemelError(
                f"query {query!r}: training diverged, {name} holds values that are not finite; lower the learning rate"
            )


def balanced_chances(split: SplitData, *, detects: bool = False) -> np.ndarray:
    """The chance of drawing each frame, so that every class is drawn equally often.

    For detectors a frame counts for the rarest class it shows a box of, and frames without boxes keep the share
    they have: what is around the boxes teaches the background already.
    """
    kinds = _rarest_classes(split) if detects else [str(label) for label in split.labels]
    counts = Counter(kinds)
    shown = len(counts) - ("" in counts)
    chances = np.array([1.0 if kind == "" else (len(kinds) - counts[""]) / shown / counts[kind] for kind in kinds])
    return chances / chances.sum()


def _rarest_classes(split: SplitData) -> list[str]:
    """For each frame the rarest of the classes that it shows a box of, '' where it shows none."""
    counts = Counter(box.label for boxes in split.boxes for box in boxes)
    return [min((box.label for box in boxes), key=lambda label: counts[label], default="") for boxes in split.boxes]


def common_feed(parts: list[QueryData]) -> QueryData:
    """One query's view of several feeds together, to train a common ancestor on. Frames may differ in size.

    All parts must answer the same number of classes with one architecture; the first one's question names them.
    """
    first = parts[0]
    train = [part.splits["train"] for part in parts]
    images = stacked([image for split in train for image in split.images])
    labels = np.concatenate([split.labels for split in train])
    boxes = tuple(_renamed(found, part, first) for part in parts for found in part.splits["train"].boxes)
    boxed = boxes if len(boxes) == len(images) else ()
    return QueryData(first.query, {**first.splits, "train": SplitData(images, labels, boxed)})


def _renamed(boxes: tuple[Box, ...], part: QueryData, first: QueryData) -> tuple[Box, ...]:
    """A part's boxes under the first part's names: the class of the same place."""
    names = dict(zip(part.query.model.classes, first.query.model.classes, strict=True))
    return tuple(Box(names[box.label], box.score, box.x, box.y, box.width, box.height) for box in boxes)

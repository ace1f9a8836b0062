"""Training the originals of a workload from its feeds' labels: what users with models of their own skip."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from gemel_ray.training.data import QueryData, SplitData
from gemel_ray.training.losses import batch_loss
from gemel_ray.vision.models import build_model

Report = Callable[[str, int, int], None]


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

    `ancestor` is a state dict to start from; tensors whose shapes differ (a head of other classes) start afresh.
    """
    torch.manual_seed(seed)
    model = build_model(data.query.model, allow_factories=allow_factories)
    if ancestor is not None:
        _inherit(model, ancestor)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    train, rng = data.splits["train"], np.random.default_rng(seed)
    chances = balanced_chances(train)
    model.train()
    for _ in range(steps):
        places = rng.choice(len(train.images), size=min(batch_size, len(train.images)), p=chances)
        optimiser.zero_grad(set_to_none=True)
        batch_loss(model, data.task, train, places, "labels").backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model.eval()


def _inherit(model: nn.Module, ancestor: Mapping[str, torch.Tensor]) -> None:
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in ancestor.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(fitting, strict=False)


def balanced_chances(split: SplitData) -> np.ndarray:
    """The chance of drawing each frame, so that every class is drawn equally often."""
    _, inverse, counts = np.unique(split.labels, return_inverse=True, return_counts=True)
    chances = 1 / counts[inverse]
    return np.asarray(chances / chances.sum())


def common_feed(parts: list[QueryData]) -> QueryData:
    """One query's view of several feeds together, to train a common ancestor on.

    All parts must answer the same number of classes with one architecture; the first one's question names them.
    """
    first = parts[0]
    train = [part.splits["train"] for part in parts]
    images = np.concatenate([np.stack(list(split.images)) for split in train])
    labels = np.concatenate([split.labels for split in train])
    boxes = tuple(box for split in train for box in split.boxes)
    return QueryData(first.query, {**first.splits, "train": SplitData(images, labels, boxes)})

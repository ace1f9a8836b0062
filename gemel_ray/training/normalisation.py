"""Re-estimating normalisation statistics after weights were averaged."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gemel_ray.training.data import SplitData
from gemel_ray.training.losses import frames_a_step
from gemel_ray.vision.tasks import Task

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_BATCH = 32


@torch.no_grad()
def reestimate_normalisation(model: nn.Module, task: Task, data: SplitData, *, seed: int, batches: int = 10) -> None:
    """Replace batch-norm statistics by those of the model as it is now, over random training batches.

    Decisive after averaging (measured: the largest group of strangers goes from .74 to .99 of the original's
    accuracy without training), harmless otherwise (at most 3 % on an unmerged original). Frozen batch norm (what
    torchvision gives detectors with a pretrained backbone) keeps its constants: they are those of the pretraining
    and not statistics of what passes through, so averaged weights have to be retrained around them.
    """
    norms = [module for module in model.modules() if isinstance(module, _NORMS) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    _feed(model, task, data, np.random.default_rng(seed), batches)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _feed(model: nn.Module, task: Task, data: SplitData, rng: np.random.Generator, batches: int) -> None:
    device = next(model.parameters()).device
    size = min(frames_a_step(task, _BATCH), len(data.images))
    for _ in range(batches):
        places = rng.choice(len(data.images), size=size, replace=False)
        model(task.prepare([data.images[place] for place in places], device))

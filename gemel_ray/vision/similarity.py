"""Evidence for the merge search: which layers' weights resemble each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from gemel_ray.policy.grouping import memory_forward
from gemel_ray.policy.ties import Ties
from gemel_ray.spec.layers import LayerGroup, LayerRef
from gemel_ray.vision.binding import module_at
from gemel_ray.vision.inspection import shareable_names

# Layers fine-tuned from one ancestor have cosines far above this, strangers' lie about 0 (merging.md, own runs).
_LEAST_COSINE = 0.5
# A cosine over so many entries is exact enough, and two layers of 400 MB are compared in a millisecond.
_SAMPLED = 1 << 16


def relatives(models: Mapping[str, nn.Module], groups: Sequence[LayerGroup]) -> tuple[LayerGroup, ...]:
    """The parts of each group whose weights resemble each other: copies, and models fine-tuned from one ancestor.

    These are predicted to share without training. Memory-forward.
    """
    return memory_forward([part for group in groups for part in _parts(models, group)])


def _parts(models: Mapping[str, nn.Module], group: LayerGroup) -> list[LayerGroup]:
    directions = [_direction(models, member) for member in group.members]
    cosines = torch.stack(directions) @ torch.stack(directions).T
    ties: Ties[int] = Ties()
    for one, other in (cosines >= _LEAST_COSINE).nonzero().tolist():
        ties.tie(one, other)
    members = [tuple(group.members[place] for place in sorted(cluster)) for cluster in ties.sets()]
    return [replace(group, members=found) for found in members if len(found) > 1]


def _direction(models: Mapping[str, nn.Module], ref: LayerRef) -> torch.Tensor:
    """The layer's largest tensor, sampled evenly, at length 1."""
    module = module_at(models, ref)
    flat = max((module.get_parameter(name) for name in shareable_names(module)), key=torch.Tensor.numel)
    values = flat.detach().reshape(-1)
    sampled = values[:: max(1, values.numel() // _SAMPLED)][:_SAMPLED].float()
    return sampled / sampled.norm().clamp_min(1e-12)

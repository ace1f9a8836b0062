"""Aligning models before their weights are averaged: the same features in the same channels.

Models trained from different random starts hold similar features in different orders. Each model's channels are
permuted, which changes none of its answers, so that the layers it is to share come as close as they can to the other
members'. Weight matching by coordinate descent (Ainsworth et al., Git Re-Basin, 2022, algorithm 1), here against the
mean of the other members, for any number of models, different architectures, and layers repeated within one model.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from gemel_ray.policy.ties import Ties
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.vision.binding import module_at
from gemel_ray.vision.inspection import shareable_names
from gemel_ray.vision.permutations import Axis, permutable_spaces

# Coordinate descent settles in three or four rounds on half-width ResNets.
_MOST_ROUNDS = 8
# A permutation is taken when it gains at least this share of what the identity has.
_LEAST_GAIN = 1e-4
# Entries of a channel that are compared. VGG's first linear layer has 25,088, of 4,096 channels.
_MOST_ENTRIES = 4096

_Key = tuple[str, str]  # query, tensor
_Spot = tuple[str, int]  # query, number of one of its spaces; number -1 where nothing may move
_STILL = ("", -1)


def align(
    models: Mapping[str, nn.Module],
    configuration: MergeConfiguration,
    *,
    tied: MergeConfiguration | None = None,
) -> None:
    """Permute the models' channels in place so that members of shared layers resemble each other.

    No model's answers change. Layers that share weights already (`tied`) stay equal: their channels move together;
    those of models that are not at hand do not matter.
    """
    matching = _Matching(models, configuration, tied or MergeConfiguration())
    for _ in range(_MOST_ROUNDS):
        if not matching.improve():
            break
    matching.write()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a joint space meets a tensor."""

    key: _Key
    axis: Axis


class _Matching:
    """All tensors at hand, permuted step by step."""

    def __init__(
        self, models: Mapping[str, nn.Module], configuration: MergeConfiguration, tied: MergeConfiguration
    ) -> None:
        self._models = models
        self._tensors = {
            (query, name): tensor.detach().clone()
            for query, model in models.items()
            for name, tensor in model.state_dict().items()
        }
        self._groups = [
            group for layer in configuration.shared for keys in _keys(models, layer.members)
            for group in self._of_one_shape(keys)
        ]  # fmt: skip
        self._group_of = {key: group for group in self._groups for key in group}
        # Of each group, kept up to date: adding up the others anew for every member takes members squared (fifteen
        # ResNet18: 88 s instead of 30).
        self._sums = {group: torch.stack([self._tensors[key] for key in group]).sum(dim=0) for group in self._groups}
        self._spaces = _joint_spaces(models, tied)
        # What moved since a space was last looked at, with all spaces still to be looked at.
        self._news: list[set[_Key]] = [{place.key for place in places} for _, places in self._spaces]

    def _of_one_shape(self, keys: Sequence[_Key]) -> list[tuple[_Key, ...]]:
        """What can be compared: of layers that are to share slices, those of one size."""
        alike: dict[torch.Size, list[_Key]] = defaultdict(list)
        for key in keys:
            alike[self._tensors[key].shape].append(key)
        return [tuple(group) for group in alike.values() if len(group) > 1]

    def improve(self) -> bool:
        """One round over the spaces that something moved for; whether anything moves again."""
        moved = False
        for number, (size, places) in enumerate(self._spaces):
            if self._news[number]:
                self._news[number] = set()
                moved |= self._place(size, places)
        return moved

    def _place(self, size: int, places: Sequence[_Place]) -> bool:
        """Find the best order of one space's channels, everything else as it is."""
        moving = {place.key for place in places}
        gain = np.zeros((size, size))
        for place in places:
            target = self._others(place.key, moving)
            if target is not None:
                gain += _agreement(target, self._tensors[place.key], place.axis, size)
        order = linear_sum_assignment(gain, maximize=True)[1]
        better = gain[np.arange(size), order].sum() - np.trace(gain)
        if better <= _LEAST_GAIN * abs(np.trace(gain)) + 1e-9:
            return False
        for place in places:
            self._move(place, order)
        self._tell(moving)
        return True

    def _move(self, place: _Place, order: np.ndarray) -> None:
        former = self._tensors[place.key]
        self._tensors[place.key] = moved = permuted(former, place.axis, order)
        if (group := self._group_of.get(place.key)) is not None:
            self._sums[group] += moved - former

    def _tell(self, moved: set[_Key]) -> None:
        """Have the other spaces looked at again whose tensors moved, or those they are compared with."""
        touched = moved.union(*(self._group_of.get(key, ()) for key in moved))
        for number, (_, places) in enumerate(self._spaces):
            keys = {place.key for place in places}
            if keys != moved:
                self._news[number] |= touched & keys

    def _others(self, key: _Key, moving: set[_Key]) -> torch.Tensor | None:
        """The mean of the members that share with this tensor and do not move along."""
        group = self._group_of.get(key, ())
        along = [self._tensors[member] for member in group if member in moving]
        if len(along) == len(group):
            return None
        others = self._sums[group].clone()
        for tensor in along:
            others -= tensor
        return others / (len(group) - len(along))

    def write(self) -> None:
        for query, model in self._models.items():
            for name, tensor in model.state_dict().items():
                tensor.copy_(self._tensors[query, name])


def _keys(models: Mapping[str, nn.Module], members: Sequence[LayerRef]) -> list[tuple[_Key, ...]]:
    """One group of tensors for each parameter of a shared layer."""
    names = shareable_names(module_at(models, members[0]))
    return [tuple((member.query, f"{member.layer}.{name}") for member in members) for name in names]


def _joint_spaces(models: Mapping[str, nn.Module], tied: MergeConfiguration) -> list[tuple[int, list[_Place]]]:
    """The spaces of all models; those that tied layers have in common are one. Fixed ones are left out."""
    ties: Ties[_Spot] = Ties()
    sizes: dict[_Spot, int] = {}
    spots: dict[tuple[_Key, int], _Spot] = {}
    places: dict[_Spot, list[_Place]] = defaultdict(list)
    for query, model in models.items():
        for number, space in enumerate(permutable_spaces(model)):
            spot = ties.add((query, number))
            sizes[spot] = space.size
            for axis in space.axes:
                spots[(query, axis.tensor), axis.dimension] = spot
                places[spot].append(_Place((query, axis.tensor), axis))
    for members, is_sliced in _members_at_hand(models, tied):
        for first, *others in _keys(models, members):
            for other, dimension in itertools.product(others, (0, 1)):
                ties.tie(spots.get((first, dimension), _STILL), spots.get((other, dimension), _STILL))
            if is_sliced:
                # A slice is the first channels of another: none may move.
                for dimension in (0, 1):
                    ties.tie(spots.get((first, dimension), _STILL), _STILL)
    return [
        (sizes[members[0]], [place for spot in members for place in places[spot]])
        for members in ties.sets()
        if _STILL not in members and len({sizes[spot] for spot in members}) == 1
    ]


def _members_at_hand(
    models: Mapping[str, nn.Module], tied: MergeConfiguration
) -> Iterator[tuple[list[LayerRef], bool]]:
    """The members of tied layers whose models are at hand, and whether they share slices."""
    for layer in tied.shared:
        if members := [member for member in layer.members if member.query in models]:
            yield members, bool(layer.extents)


def _agreement(target: torch.Tensor, tensor: torch.Tensor, axis: Axis, size: int) -> np.ndarray:
    """size x size: how well channel j of a tensor would do in channel i's place."""
    wanted, given = (_by_channel(each, axis, size) for each in (target, tensor))
    return (wanted @ given.T).cpu().numpy()


def _by_channel(tensor: torch.Tensor, axis: Axis, size: int) -> torch.Tensor:
    """size x what belongs to each channel, or an even sample of that."""
    rows = tensor.movedim(axis.dimension, 0).reshape(size, -1)
    return rows[:, :: max(1, rows.shape[1] // _MOST_ENTRIES)]


def permuted(tensor: torch.Tensor, axis: Axis, order: np.ndarray) -> torch.Tensor:
    """A tensor with the channels along one axis in another order: channel `order[i]` goes to place i."""
    entries = torch.as_tensor(order, device=tensor.device)
    if axis.repeat > 1:
        entries = (entries[:, None] * axis.repeat + torch.arange(axis.repeat, device=tensor.device)).flatten()
    return tensor.index_select(axis.dimension, entries)

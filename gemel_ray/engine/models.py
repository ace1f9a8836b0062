"""A query's model as a skeleton: its code and no weights, which are lent to it while it computes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import nn

from gemel_ray.engine.blobs import BlobFile
from gemel_ray.engine.residence import Residence
from gemel_ray.spec.answers import Answer
from gemel_ray.spec.errors import ModelError
from gemel_ray.spec.release import REMAINDER, Manifest, ReleasedQuery
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import Image, task_for

# What a module keeps its parameters or its buffers in.
Holder = dict[str, torch.Tensor | None]


class Source(NamedTuple):
    """Where a tensor comes from: which blob, and its name there."""

    weight: str
    name: str


@dataclass(frozen=True, slots=True)
class _Slot:
    """One place of a module that a weight goes to; `empty` (on the meta device) stands there in between."""

    holder: Holder
    key: str
    empty: torch.Tensor
    source: Source


class Skeleton:
    """One query's model on the device, without weights of its own.

    Resident tensors are put into the modules' slots for the time of one forward pass and taken out again.
    torch.func.functional_call does the same with checks that cost 0.6 to 5 ms a call; this costs 0.03 ms (resnet50,
    320 tensors, 2 cores).
    """

    def __init__(
        self, released: ReleasedQuery, model: nn.Module, blobs: Mapping[str, BlobFile], device: torch.device
    ) -> None:
        """`model` is on the meta device as `bare_model` leaves it. Raises ModelError when the blobs do not fit it."""
        self.name = released.query.name
        self.device = device
        self.weights = tuple(dict.fromkeys(released.weights[path] for path in sorted(released.weights)))
        self._model = model
        self._task = task_for(released.query.model, released.query.score_threshold)
        self._slots = _slots(released, model, blobs)

    def answers(self, images: Sequence[Image], residence: Residence) -> list[Answer]:
        """One answer for each frame (uint8, H x W x 3, RGB), by one forward pass on weights that are resident."""
        with torch.inference_mode(), self._lent(residence):
            inputs = self._task.prepare(images, self.device)
            return self._task.answers(self._model(inputs), images)

    @contextmanager
    def _lent(self, residence: Residence) -> Iterator[None]:
        tensors = {weight: residence.tensors(weight) for weight in self.weights}
        try:
            for slot in self._slots:
                slot.holder[slot.key] = tensors[slot.source.weight][slot.source.name]
            yield
        finally:
            for slot in self._slots:
                slot.holder[slot.key] = slot.empty


def build_skeletons(
    manifest: Manifest, blobs: Mapping[str, BlobFile], device: torch.device, *, allow_factories: bool = False
) -> dict[str, Skeleton]:
    """Every query's skeleton. Queries with models of one kind are built once and copied: building draws random
    weights, which takes a second for the largest.

    Raises ModelError for models that cannot be built and for blobs that do not fit them.
    """
    kinds: dict[str, list[ReleasedQuery]] = defaultdict(list)
    for released in manifest.queries.values():
        kinds[_kind(released.query.model)].append(released)
    skeletons: dict[str, Skeleton] = {}
    for alike in kinds.values():
        model = bare_model(alike[0].query.model, device, allow_factories=allow_factories)
        copies = [model, *(deepcopy(model) for _ in alike[1:])]
        for released, own in zip(alike, copies, strict=True):
            skeletons[released.query.name] = Skeleton(released, own, blobs, device)
    return {name: skeletons[name] for name in manifest.queries}


def bare_model(spec: ModelSpec, device: torch.device, *, allow_factories: bool = False) -> nn.Module:
    """The model with parameters and buffers on the meta device, so that it holds no weights.

    Buffers that are no part of the state dict go to `device` instead, since no blob brings them; so do tensors
    kept as plain attributes (detectors' anchors), which stay as built and follow the input by themselves.
    """
    model = build_model(spec, allow_factories=allow_factories)
    kept = [
        (module, name, buffer.to(device))
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    ]
    model.to("meta")
    for module, name, buffer in kept:
        module._buffers[name] = buffer
    return model


def _kind(spec: ModelSpec) -> str:
    # Weights and class names leave the model's form alone; only the number of classes matters.
    form = spec.model_dump(mode="json", exclude={"weights", "classes"}) | {"classes": len(spec.classes)}
    return json.dumps(form, sort_keys=True)


def _slots(released: ReleasedQuery, model: nn.Module, blobs: Mapping[str, BlobFile]) -> tuple[_Slot, ...]:
    sources = _sources(released, blobs)
    slots = []
    for path, module in model.named_modules():
        for holder, key, empty in _places(module):
            full = f"{path}.{key}" if path else key
            source = _source(released, full, sources)
            _check_fit(released, full, empty, blobs[source.weight], source)
            slots.append(_Slot(holder, key, empty, source))
    return tuple(slots)


def _places(module: nn.Module) -> Iterator[tuple[Holder, str, torch.Tensor]]:
    # A module finds plain tensors among its parameters just as well.
    for holder in (cast(Holder, module._parameters), module._buffers):
        for key, tensor in holder.items():
            if tensor is not None and key not in module._non_persistent_buffers_set:
                yield holder, key, tensor


def _sources(released: ReleasedQuery, blobs: Mapping[str, BlobFile]) -> dict[str, Source]:
    """Full tensor name -> where it comes from; a shared blob's short names stand below each path that uses it."""
    found: dict[str, Source] = {}
    for path, weight in sorted(released.weights.items()):
        prefix = "" if path == REMAINDER else f"{path}."
        found |= {prefix + name: Source(weight, name) for name in blobs[weight].tensors}
    return found


def _source(released: ReleasedQuery, full: str, sources: Mapping[str, Source]) -> Source:
    if full not in sources:
        raise ModelError(
            f"query {released.query.name!r}: no blob of the release holds {full!r}, which "
            f"{released.query.model.builder} needs; was the release made for another model?"
        )
    return sources[full]


def _check_fit(released: ReleasedQuery, full: str, empty: torch.Tensor, blob: BlobFile, source: Source) -> None:
    place = blob.tensors[source.name]
    if (place.shape, place.dtype) != (tuple(empty.shape), empty.dtype):
        raise ModelError(
            f"query {released.query.name!r}: {full!r} is {place.shape} {place.dtype} in the release, "
            f"{released.query.model.builder} has {tuple(empty.shape)} {empty.dtype}; was the release made for another "
            "model?"
        )

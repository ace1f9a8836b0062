"""A query's model as a skeleton: its code and no weights, which are lent to it while it computes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from gemel_ray.engine.blobs import BlobFile
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.staging import Stages, Wait
from gemel_ray.engine.ways import computing, laid_out
from gemel_ray.spec.answers import Answer
from gemel_ray.spec.errors import ModelError, ServingError
from gemel_ray.spec.profile import Way
from gemel_ray.spec.release import Manifest, ReleasedQuery
from gemel_ray.spec.weight_sets import tensor_prefix
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.deltas import attach_deltas
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import Image, task_for
from gemel_ray.weights.tensors import narrowed

# What a module keeps its parameters or its buffers in.
Holder = dict[str, torch.Tensor | None]


class Source(NamedTuple):
    """Where a tensor comes from: which blob, and its name there; and of what shape it is, where it is a slice."""

    weight: str
    name: str
    slice: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Slot:
    """One place of the module at `path` that a weight goes to; `empty` (on the meta device) stands there in between."""

    path: str
    holder: Holder
    key: str
    empty: torch.Tensor
    source: Source


class Skeleton:
    """One query's model on the device, without weights of its own.

    Resident tensors are put into the modules' slots for the time of one forward pass and taken out again; used by one
    thread at a time.
    torch.func.functional_call does the same with checks that cost 0.6 to 5 ms a call; this costs 0.03 ms (resnet50,
    320 tensors, 2 cores).
    """

    def __init__(
        self, released: ReleasedQuery, model: nn.Module, blobs: Mapping[str, BlobFile], device: torch.device
    ) -> None:
        """`model` is on the meta device as `bare_model` leaves it. Raises ModelError when the blobs do not fit it."""
        self.name = released.query.name
        self.device = device
        self.way: Way = "plain"
        self._model = model
        # The same model in two parts, where its first layers are computed for others too; see engine.stems.
        self.stemmed: Callable[[Any], Any] | None = None
        self._task = task_for(released.query.model, released.query.score_threshold)
        self._slots: dict[str, list[_Slot]] = {}
        for slot in _slots(released, model, blobs):
            self._slots.setdefault(slot.source.weight, []).append(slot)
        # In the order in which the model's modules stand, which is mostly that in which they are computed.
        self.weights = tuple(self._slots)
        places = {weight: [slot.path for slot in slots] for weight, slots in self._slots.items()}
        self._stages = Stages(model, places, self._need)
        # While it computes: what is not in place yet, and how to wait for it.
        self._due: dict[str, None] = {}
        self._residence: Residence | None = None
        self._wait: Wait = _must_be_there

    @property
    def model(self) -> nn.Module:
        """The model's code; its weights are there only while it computes."""
        return self._model

    @property
    def sources(self) -> dict[str, Source]:
        """Where each tensor of the model comes from, by its full name."""
        slots = (slot for placed in self._slots.values() for slot in placed)
        return {f"{slot.path}.{slot.key}".lstrip("."): slot.source for slot in slots}

    def answers(self, images: Sequence[Image], residence: Residence, wait: Wait | None = None) -> list[Answer]:
        """One answer for each frame (uint8, H x W x 3, RGB), by one forward pass.

        With `wait` weights may still be on their way: each is waited for when it is needed, once a first pass has
        shown when that is. Without, all must be resident.
        """
        with torch.inference_mode(), self._lent(residence, wait or _must_be_there), computing(self.way, self.device):
            inputs = laid_out(self._task.prepare(images, self.device), self.way)
            return self._task.answers(self._forward(inputs), images)

    def first_uses(self, images: Sequence[Image], residence: Residence) -> dict[str, float]:
        """After which fraction of a forward pass weights are first needed, by the path of each module that holds some.

        Of modules, not of weight sets, since the next release may divide the model otherwise.
        """
        with torch.inference_mode(), self._lent(residence, _must_be_there), computing(self.way, self.device):
            inputs = laid_out(self._task.prepare(images, self.device), self.way)
            with self._stages.watched() as fractions:
                self._task.answers(self._model(inputs), images)
        return fractions

    def _forward(self, inputs: Any) -> Any:  # noqa: ANN401 - as Task.prepare gives it and Task.answers takes it
        if not self._stages.known:
            self._need_all()
            with self._stages.watched():
                return self._model(inputs)
        compute = self.stemmed or self._model
        try:
            return compute(inputs)
        except Exception:
            if not self._due:
                raise
        # A model that reads weights of modules it has not called yet finds none there and fails: this one takes all.
        self._need_all()
        return self._model(inputs)

    @contextmanager
    def _lent(self, residence: Residence, wait: Wait) -> Iterator[None]:
        self._residence, self._wait = residence, wait
        self._due = dict.fromkeys(self.weights)
        try:
            for weight in self.weights:
                if weight in residence:
                    self._need(weight)
            yield
        finally:
            self._due, self._residence = {}, None
            for slots in self._slots.values():
                for slot in slots:
                    slot.holder[slot.key] = slot.empty

    def _need(self, weight: str) -> None:
        """Put a weight set in place if it is not, waiting for it if need be."""
        if weight not in self._due or self._residence is None:
            return
        if weight not in self._residence:
            self._wait(weight)
        tensors = self._residence.tensors(weight)
        for slot in self._slots[weight]:
            tensor, shape = tensors[slot.source.name], slot.source.slice
            slot.holder[slot.key] = tensor if shape is None else narrowed(tensor, shape)
        del self._due[weight]

    def _need_all(self) -> None:
        for weight in list(self._due):
            self._need(weight)


def _must_be_there(weight: str) -> None:
    raise ServingError(f"weights {weight} are not resident; load them first")


def build_skeletons(
    manifest: Manifest, blobs: Mapping[str, BlobFile], device: torch.device, *, allow_factories: bool = False
) -> dict[str, Skeleton]:
    """Every query's skeleton. Queries with models of one kind are built once and copied: building draws random
    weights, which takes a second for the largest.

    Raises ModelError for models that cannot be built and for blobs that do not fit them.
    """
    kinds: dict[str, list[ReleasedQuery]] = defaultdict(list)
    for released in manifest.queries.values():
        kinds[kind_of(released.query.model)].append(released)
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


def kind_of(spec: ModelSpec) -> str:
    """Equal for models of the same form, which cost the same on one device."""
    # Weights and class names leave the model's form alone; only the number of classes matters.
    form = spec.model_dump(mode="json", exclude={"weights", "classes"}) | {"classes": len(spec.classes)}
    return json.dumps(form, sort_keys=True)


def _slots(released: ReleasedQuery, model: nn.Module, blobs: Mapping[str, BlobFile]) -> tuple[_Slot, ...]:
    sources = _sources(released, blobs)
    attach_deltas(model, {full: _shape(blobs[source.weight], source) for full, source in sources.items()})
    slots = []
    for path, module in model.named_modules():
        for holder, key, empty in _places(module):
            full = f"{path}.{key}" if path else key
            source = _source(released, full, sources)
            _check_fit(released, full, empty, blobs[source.weight], source)
            slots.append(_Slot(path, holder, key, empty, source))
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
        prefix, slices = tensor_prefix(path), released.slices.get(path, {})
        found |= {prefix + name: Source(weight, name, slices.get(name)) for name in blobs[weight].tensors}
    return found


def _shape(blob: BlobFile, source: Source) -> tuple[int, ...]:
    return source.slice or blob.tensors[source.name].shape


def _source(released: ReleasedQuery, full: str, sources: Mapping[str, Source]) -> Source:
    if full not in sources:
        raise ModelError(
            f"query {released.query.name!r}: no blob of the release holds {full!r}, which "
            f"{released.query.model.builder} needs; was the release made for another model?"
        )
    return sources[full]


def _check_fit(released: ReleasedQuery, full: str, empty: torch.Tensor, blob: BlobFile, source: Source) -> None:
    shape, dtype = _shape(blob, source), blob.tensors[source.name].dtype
    if (shape, dtype) != (tuple(empty.shape), empty.dtype):
        raise ModelError(
            f"query {released.query.name!r}: {full!r} is {shape} {dtype} in the release, "
            f"{released.query.model.builder} has {tuple(empty.shape)} {empty.dtype}; was the release made for another "
            "model?"
        )

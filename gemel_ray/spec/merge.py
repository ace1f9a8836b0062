"""The merge configuration: which layers share one copy of the weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, model_validator

from gemel_ray.spec.layers import Extent, LayerGroup, LayerRef, Tensor
from gemel_ray.spec.strict import Strict


class SharedLayer(Strict):
    """Layers that share one copy of the weights."""

    signature: str
    # Bytes of the one copy: of the largest member, where they differ.
    layer_bytes: Annotated[int, Field(gt=0)]
    members: Annotated[tuple[LayerRef, ...], Field(min_length=2)]
    # Each member keeps a private correction of this rank; 0 is none.
    rank: Annotated[int, Field(ge=0)] = 0
    # What a correction of rank 1 weighs; 0 where the layer cannot have one.
    rank_bytes: Annotated[int, Field(ge=0)] = 0
    # Of all members, where they differ in size: smaller ones take slices of the copy.
    extents: tuple[Extent, ...] = ()

    @property
    def saved_bytes(self) -> int:
        """Bytes spared when all members share one copy, less their private corrections."""
        apart = sum(extent.bytes for extent in self.extents) or self.layer_bytes * len(self.members)
        return apart - self.layer_bytes - self.rank * self.rank_bytes * len(self.members)

    def bytes_of(self, member: LayerRef) -> int:
        """What a member's weights would take by themselves."""
        return next((extent.bytes for extent in self.extents if extent.member == member), self.layer_bytes)

    def corrected(self, rank: int) -> SharedLayer | None:
        """The same layer with private corrections of that rank; None where that is not possible or saves nothing."""
        found = self.model_copy(update={"rank": rank})
        possible = self.rank == 0 < rank and self.rank_bytes and not self.extents
        return found if possible and found.saved_bytes > 0 else None

    def among(self, members: Iterable[LayerRef]) -> SharedLayer | None:
        """The same layer shared by those of its members only; None where fewer than two are left."""
        wanted = set(members)
        kept = tuple(member for member in self.members if member in wanted)
        if len(kept) < 2:
            return None
        extents = tuple(extent for extent in self.extents if extent.member in wanted)
        return self.model_copy(update={"members": kept} | _sized(extents, self.layer_bytes))


class MergeConfiguration(Strict):
    """All shared layers of a set of models. No layer appears twice."""

    shared: tuple[SharedLayer, ...] = ()

    @model_validator(mode="after")
    def _disjoint(self) -> MergeConfiguration:
        seen: set[LayerRef] = set()
        for layer in self.shared:
            for member in layer.members:
                if member in seen:
                    raise ValueError(f"{member} is shared twice; a layer has one set of weights")
                seen.add(member)
        return self

    @classmethod
    def of(cls, groups: Iterable[LayerGroup]) -> MergeConfiguration:
        """The configuration that shares every given group whole."""
        return cls(
            shared=tuple(
                SharedLayer(
                    signature=group.signature,
                    layer_bytes=group.layer_bytes,
                    members=group.members,
                    rank_bytes=group.rank_bytes,
                    extents=group.extents,
                )
                for group in groups
            )
        )

    def joined(self, additions: Iterable[SharedLayer]) -> MergeConfiguration:
        """This configuration and further shared layers; those with a member in common become one. Largest saving first.

        Raises ValueError where layers of different sizes would become one that are not shared in slices.
        """
        shared = list(self.shared)
        for addition in additions:
            touching = [layer for layer in shared if not set(layer.members).isdisjoint(addition.members)]
            shared = [layer for layer in shared if layer not in touching]
            shared.append(_united((addition, *touching)))
        return MergeConfiguration(shared=tuple(sorted(shared, key=memory_forward_key)))

    def can_take(self, group: LayerGroup) -> bool:
        """Whether a group can be shared on top of this: its layers, and those they share with, must fit together."""
        try:
            self.joined(MergeConfiguration.of([group]).shared)
        except ValueError:
            return False
        return True

    def within(self, queries: Iterable[str]) -> MergeConfiguration:
        """The shared layers that belong to these queries alone."""
        wanted = set(queries)
        return MergeConfiguration(
            shared=tuple(layer for layer in self.shared if wanted.issuperset(member.query for member in layer.members))
        )

    def slices_of(self, query: str) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes of one query's weights that are slices of larger copies, by layer and tensor."""
        extents = (extent for layer in self.shared for extent in layer.extents if extent.bytes < layer.layer_bytes)
        return {
            extent.member.layer: {tensor.name: tensor.shape for tensor in extent.tensors}
            for extent in extents
            if extent.member.query == query
        }

    @property
    def saved_bytes(self) -> int:
        """Bytes spared against a private copy for every member."""
        return sum(layer.saved_bytes for layer in self.shared)

    @property
    def queries(self) -> tuple[str, ...]:
        """Queries with at least one shared layer, sorted."""
        return tuple(sorted({member.query for layer in self.shared for member in layer.members}))


def memory_forward_key(layer: SharedLayer) -> tuple[int, str, tuple[LayerRef, ...]]:
    """Sorts shared layers by saving, largest first, with a total order."""
    return -layer.saved_bytes, layer.signature, layer.members


def _united(layers: tuple[SharedLayer, ...]) -> SharedLayer:
    first = layers[0]
    extents = _united_extents(layers)
    if not extents and (other := next((layer for layer in layers if layer.layer_bytes != first.layer_bytes), None)):
        raise ValueError(f"{first.members[0]} and {other.members[0]} differ in size and cannot share one copy")
    members = dict.fromkeys(member for layer in layers for member in layer.members)
    changed = {"members": tuple(sorted(members)), "rank": max(layer.rank for layer in layers)}
    return first.model_copy(update=changed | _sized(extents, first.layer_bytes))


def _sized(extents: tuple[Extent, ...], layer_bytes: int) -> dict[str, object]:
    """Bytes of a copy and the extents of its members, which are none where all are of one size."""
    largest = max((extent.bytes for extent in extents), default=layer_bytes)
    differ = any(extent.bytes != largest for extent in extents)
    return {"layer_bytes": largest, "extents": extents if differ else ()}


def _united_extents(layers: tuple[SharedLayer, ...]) -> tuple[Extent, ...]:
    """The extents of all members of layers that become one; none where no layer is shared in slices.

    Members of a layer of one size are as large as that of them which another layer knows.
    """
    known: dict[LayerRef, tuple[Tensor, ...]] = {e.member: e.tensors for layer in layers for e in layer.extents}
    if not known:
        return ()
    for layer in sorted(layers, key=lambda layer: not layer.extents):
        tensors = next((known[member] for member in layer.members if member in known), None)
        if tensors is None:
            raise ValueError(
                f"{layer.members[0]}: how large it is, beside what it is to share slices with, is not known"
            )
        for member in () if layer.extents else layer.members:
            known[member] = tensors
    ordered = sorted((Extent(member, tensors) for member, tensors in known.items()), key=lambda each: -each.bytes)
    for larger, smaller in itertools.pairwise(ordered):
        if not larger.covers(smaller):
            raise ValueError(f"{smaller.member} is no slice of {larger.member}; they cannot share one copy")
    return tuple(sorted(ordered))

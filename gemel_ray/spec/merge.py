"""The merge configuration: which layers share one copy of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, model_validator

from gemel_ray.spec.layers import LayerGroup, LayerRef
from gemel_ray.spec.strict import Strict


class SharedLayer(Strict):
    """Layers that share one copy of the weights."""

    signature: str
    layer_bytes: Annotated[int, Field(gt=0)]
    members: Annotated[tuple[LayerRef, ...], Field(min_length=2)]
    # Each member keeps a private correction of this rank; 0 is none.
    rank: Annotated[int, Field(ge=0)] = 0
    # What a correction of rank 1 weighs; 0 where the layer cannot have one.
    rank_bytes: Annotated[int, Field(ge=0)] = 0

    @property
    def saved_bytes(self) -> int:
        """Bytes spared when all members share one copy, less their private corrections."""
        return self.layer_bytes * (len(self.members) - 1) - self.rank * self.rank_bytes * len(self.members)

    def corrected(self, rank: int) -> SharedLayer | None:
        """The same layer with private corrections of that rank; None where that is not possible or saves nothing."""
        found = self.model_copy(update={"rank": rank})
        return found if self.rank == 0 < rank and self.rank_bytes and found.saved_bytes > 0 else None

    def among(self, members: Iterable[LayerRef]) -> SharedLayer | None:
        """The same layer shared by those of its members only; None where fewer than two are left."""
        wanted = set(members)
        kept = tuple(member for member in self.members if member in wanted)
        return self.model_copy(update={"members": kept}) if len(kept) > 1 else None


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
                )
                for group in groups
            )
        )

    def joined(self, additions: Iterable[SharedLayer]) -> MergeConfiguration:
        """This configuration and further shared layers; those with a member in common become one. Largest saving first.

        Raises ValueError where layers of different sizes would become one.
        """
        shared = list(self.shared)
        for addition in additions:
            touching = [layer for layer in shared if not set(layer.members).isdisjoint(addition.members)]
            shared = [layer for layer in shared if layer not in touching]
            shared.append(_united((addition, *touching)))
        return MergeConfiguration(shared=tuple(sorted(shared, key=memory_forward_key)))

    def within(self, queries: Iterable[str]) -> MergeConfiguration:
        """The shared layers that belong to these queries alone."""
        wanted = set(queries)
        return MergeConfiguration(
            shared=tuple(layer for layer in self.shared if wanted.issuperset(member.query for member in layer.members))
        )

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
    if other := next((layer for layer in layers if layer.layer_bytes != first.layer_bytes), None):
        raise ValueError(f"{first.members[0]} and {other.members[0]} differ in size and cannot share one copy")
    members = dict.fromkeys(member for layer in layers for member in layer.members)
    rank = max(layer.rank for layer in layers)
    return first.model_copy(update={"members": tuple(sorted(members)), "rank": rank})

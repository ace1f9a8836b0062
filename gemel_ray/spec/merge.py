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
                SharedLayer(signature=group.signature, layer_bytes=group.layer_bytes, members=group.members)
                for group in groups
            )
        )

    @property
    def saved_bytes(self) -> int:
        """Bytes spared against a private copy for every member."""
        return sum(layer.layer_bytes * (len(layer.members) - 1) for layer in self.shared)

    @property
    def queries(self) -> tuple[str, ...]:
        """Queries with at least one shared layer, sorted."""
        return tuple(sorted({member.query for layer in self.shared for member in layer.members}))

"""What a model is made of, as far as sharing is concerned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class LayerRef(NamedTuple):
    """One layer of one query's model: 'query', 'module.path'."""

    query: str
    layer: str

    def __str__(self) -> str:
        return f"{self.query}:{self.layer}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One parameter of a layer: its name below the layer's path, its shape and bytes."""

    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight-bearing layer: Conv, Linear, ConvTranspose or an attention projection.

    `exact` and `shape` are its signatures under the two rules: layers with equal signatures may share weights.
    """

    path: str
    kind: str
    exact: str
    shape: str
    tensors: tuple[Tensor, ...]
    # What a private correction of rank 1 to a shared weight weighs; 0 where the layer cannot have one.
    rank_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of all the layer's parameters."""
        return sum(tensor.bytes for tensor in self.tensors)

    def signature(self, rule: str) -> str:
        """The signature under rule 'exact' or 'shape'."""
        return self.exact if rule == "exact" else self.shape


@dataclass(frozen=True, slots=True)
class ModelInventory:
    """All weight-bearing layers of one query's model in order of appearance, and the bytes beside them."""

    query: str
    builder: str
    layers: tuple[Layer, ...]
    # Normalisation, embeddings and whatever else no rule can share.
    other_bytes: int

    @property
    def layer_bytes(self) -> int:
        """Bytes of the weight-bearing layers."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def total_bytes(self) -> int:
        """Bytes of all parameters and buffers."""
        return self.layer_bytes + self.other_bytes


class Extent(NamedTuple):
    """What a member takes of a copy that is shared in slices: the first rows, columns ... of each tensor."""

    member: LayerRef
    tensors: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        """What the member's weights take by themselves."""
        return sum(tensor.bytes for tensor in self.tensors)

    def covers(self, other: Extent) -> bool:
        """Whether the other one is a slice of this, or the same."""
        mine = {tensor.name: tensor.shape for tensor in self.tensors}
        return mine.keys() == {tensor.name for tensor in other.tensors} and all(
            covers(mine[tensor.name], tensor.shape) for tensor in other.tensors
        )


def covers(larger: Sequence[int], smaller: Sequence[int]) -> bool:
    """Whether a tensor of the smaller shape is the first rows, columns ... of one of the larger."""
    return len(larger) == len(smaller) and all(few <= many for few, many in zip(smaller, larger, strict=True))


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers of different models that may share one copy, tried together: appearances of one signature, or slices of
    the largest of them.
    """

    signature: str
    members: tuple[LayerRef, ...]
    # Bytes of one copy.
    layer_bytes: int
    # See Layer.
    rank_bytes: int = 0
    # Of all members, where they differ in size.
    extents: tuple[Extent, ...] = ()

    @property
    def saved_bytes(self) -> int:
        """Bytes spared when all members share one copy."""
        if self.extents:
            return sum(extent.bytes for extent in self.extents) - self.layer_bytes
        return self.layer_bytes * (len(self.members) - 1)

    @property
    def queries(self) -> tuple[str, ...]:
        """The models it touches."""
        return tuple(dict.fromkeys(member.query for member in self.members))

"""The picture of what was shared, as geometry: models as columns of layers, members of one copy tied together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gemel_ray.spec.layers import LayerRef, ModelInventory
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer, memory_forward_key


@dataclass(frozen=True, slots=True)
class Column:
    """One query's model: where it stands, from left to right, and how high it is."""

    place: int
    query: str
    builder: str
    height_bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """One layer in its model's column. Bytes count from the column's top, the input's side, downwards.

    `layer` is empty for what no rule can share. `share` is the place of the copy it uses in `Picture.shares`, None
    for a layer with weights of its own. Of the blocks with one share, one alone is counted: the first of the largest.
    """

    column: int
    layer: str
    top_bytes: int
    height_bytes: int
    share: int | None = None
    is_counted: bool = True

    @property
    def middle_bytes(self) -> float:
        """Halfway down the block."""
        return self.top_bytes + self.height_bytes / 2


@dataclass(frozen=True, slots=True)
class Tie:
    """Two blocks that use one copy: in columns beside or beyond each other, or in one column."""

    start: Block
    end: Block

    @property
    def is_within(self) -> bool:
        """Whether both are layers of one model."""
        return self.start.column == self.end.column


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it. `shares` are the shared layers, those that save most first."""

    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    ties: tuple[Tie, ...]
    shares: tuple[SharedLayer, ...]

    @property
    def height_bytes(self) -> int:
        """Of the highest column."""
        return max((column.height_bytes for column in self.columns), default=0)

    @property
    def counted_bytes(self) -> int:
        """Bytes of all blocks, those that use one copy counted once. Private corrections come on top."""
        return sum(block.height_bytes for block in self.blocks if block.is_counted)


def lay_out(inventories: Sequence[ModelInventory], configuration: MergeConfiguration) -> Picture:
    """Columns in the given order, models of one builder side by side, so that ties are short."""
    builders = list(dict.fromkeys(inventory.builder for inventory in inventories))
    ordered = sorted(inventories, key=lambda inventory: builders.index(inventory.builder))
    shares = tuple(sorted(configuration.shared, key=memory_forward_key))
    share_of = {member: place for place, layer in enumerate(shares) for member in layer.members}
    columns = tuple(
        Column(place, inventory.query, inventory.builder, inventory.total_bytes)
        for place, inventory in enumerate(ordered)
    )
    blocks = tuple(_blocks(ordered, share_of))
    return Picture(columns, blocks, tuple(_ties(blocks)), shares)


def _blocks(inventories: Sequence[ModelInventory], share_of: Mapping[LayerRef, int]) -> Iterator[Block]:
    counted = _counted(inventories, share_of)
    for place, inventory in enumerate(inventories):
        top_bytes = 0
        for layer in inventory.layers:
            ref = LayerRef(inventory.query, layer.path)
            share = share_of.get(ref)
            yield Block(place, layer.path, top_bytes, layer.bytes, share, share is None or counted[share] == ref)
            top_bytes += layer.bytes
        if inventory.other_bytes:
            yield Block(place, "", top_bytes, inventory.other_bytes)


def _counted(inventories: Sequence[ModelInventory], share_of: Mapping[LayerRef, int]) -> dict[int, LayerRef]:
    """Of every share the member whose weights are the copy; others are equal to them, or slices."""
    found: dict[int, tuple[int, LayerRef]] = {}
    for inventory in inventories:
        for layer in inventory.layers:
            ref = LayerRef(inventory.query, layer.path)
            if (share := share_of.get(ref)) is not None and layer.bytes > found.get(share, (0, ref))[0]:
                found[share] = (layer.bytes, ref)
    return {share: ref for share, (_, ref) in found.items()}


def _ties(blocks: Sequence[Block]) -> Iterator[Tie]:
    """As few as hold all members of a share together: each to one before it, where possible in another column."""
    members: dict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        if block.share is not None:
            members[block.share].append(block)
    for share in sorted(members):
        yield from _ties_of(members[share])


def _ties_of(members: Sequence[Block]) -> Iterator[Tie]:
    by_column: dict[int, list[Block]] = defaultdict(list)
    for block in members:
        by_column[block.column].append(block)
    before: list[Block] = []
    for found in by_column.values():
        for place, block in enumerate(found):
            if place < len(before):
                yield Tie(before[place], block)
            elif place:
                yield Tie(found[place - 1], block)
        before = found

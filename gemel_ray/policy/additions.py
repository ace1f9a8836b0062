"""What a candidate adds to an accepted merge configuration, and how it is made smaller when it fails."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from gemel_ray.spec.merge import MergeConfiguration, SharedLayer, memory_forward_key

# The share of bytes that a cautious candidate leaves out, taken from the lightest groups (merging.md: the stem and
# the first blocks, 2-3 % of the bytes, hold most of the difficulty).
_HARDEST_FRACTION = 0.03

Addition = tuple[SharedLayer, ...]


def memory_forward(layers: Iterable[SharedLayer]) -> Addition:
    """Largest saving first, each layer once."""
    return tuple(sorted(dict.fromkeys(layers), key=memory_forward_key))


def names(addition: Addition) -> tuple[tuple[str, ...], ...]:
    """What it shares, to sort by."""
    return tuple(tuple(map(str, layer.members)) for layer in addition)


def fingerprint(configuration: MergeConfiguration) -> str:
    """The same for equal configurations, short enough to keep thousands of them."""
    members = sorted((sorted(map(str, layer.members)), layer.rank) for layer in configuration.shared)
    return hashlib.sha256(repr(members).encode()).hexdigest()[:16]


def without_hardest(addition: Addition) -> Addition:
    """All but the lightest groups that together hold the hardest fraction of the saving."""
    ordered = memory_forward(addition)
    allowance = _HARDEST_FRACTION * sum(layer.saved_bytes for layer in ordered)
    left_out = 0
    for place in range(len(ordered) - 1, -1, -1):
        left_out += ordered[place].saved_bytes
        if left_out > allowance:
            return ordered[: place + 1]
    return ()


def pieces(
    addition: Addition, objectors: Collection[str], *, delta_rank: int = 0, hopeless: bool = False
) -> list[Addition]:
    """Smaller additions to try instead of one that failed; none when it cannot be split.

    Several groups: the same without the queries that objected, and the halves of the groups; of what was `hopeless`
    the heavier half, which holds most of the bytes, in halves again. One group: without the objectors, or the halves of
    its members, or with private corrections of `delta_rank`.
    """
    if not addition:
        return []
    spared = _without_queries(addition, objectors)
    if len(addition) > 1:
        ordered = memory_forward(addition)
        middle = len(ordered) // 2
        quarter = middle // 2 if hopeless else 0
        halves = [ordered[:quarter], ordered[quarter:middle], ordered[middle:]]
    else:
        halves = _halves_of_members(addition[0])
        corrected = addition[0].corrected(delta_rank)
        halves += [(corrected,)] if corrected else []
    return [piece for piece in (spared, *halves) if piece and piece != addition]


def _without_queries(addition: Addition, queries: Collection[str]) -> Addition:
    if not queries:
        return ()
    kept = (layer.among(member for member in layer.members if member.query not in queries) for layer in addition)
    return tuple(layer for layer in kept if layer is not None)


def _halves_of_members(layer: SharedLayer) -> list[Addition]:
    """Split by members, which are sorted by query; three become a pair, and the pair of the others."""
    if len(layer.members) < 3:
        return []
    middle = (len(layer.members) + 1) // 2
    halves = (layer.among(layer.members[:middle]), layer.among(layer.members[middle - len(layer.members) % 2 :]))
    return [(half,) for half in halves if half is not None]


def told(addition: Addition) -> str:
    """What an addition shares, for people."""
    queries = {member.query for layer in addition for member in layer.members}
    what = f"{len(addition)} layer groups" if len(addition) > 1 else f"{addition[0].members[0].layer}"
    if any(layer.extents for layer in addition):
        what = f"{sum(len(layer.members) for layer in addition)} layers, some as slices of others,"
    whose = f"of {len(queries)} queries" if len(queries) > 1 else f"within {min(queries)}"
    rank = max(layer.rank for layer in addition)
    return f"{what} {whose}" + (f", with corrections of rank {rank}" if rank else "")

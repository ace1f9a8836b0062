"""Eviction policies: which resident weight goes first when room is needed.

A policy is a number for one weight, larger ones go first, from two distances counted in turns of the round robin:
how far ahead the weight's next use is, and how long ago its last use was.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

Eviction = Callable[[int, int], float]


def furthest_next_use(turns_ahead: int, turns_ago: int) -> float:
    """Belady's rule. The future is known: the order is fixed and repeats."""
    return turns_ahead


def least_recently_used(turns_ahead: int, turns_ago: int) -> float:
    """What caches of whole models do; in a cyclic order it evicts just what is needed next."""
    return turns_ago


def most_recently_used(turns_ahead: int, turns_ago: int) -> float:
    """The time/space sharing baseline of GEMEL's section 3.2 (a variant of Nexus)."""
    return -turns_ago


EVICTIONS: Mapping[str, Eviction] = {
    "furthest_next_use": furthest_next_use,
    "least_recently_used": least_recently_used,
    "most_recently_used": most_recently_used,
}


def turns_of(order: Sequence[Iterable[str]]) -> dict[str, tuple[int, ...]]:
    """The turns, ascending, that need each weight; `order` holds every turn's weights."""
    turns: dict[str, list[int]] = defaultdict(list)
    for turn, weights in enumerate(order):
        for weight in dict.fromkeys(weights):
            turns[weight].append(turn)
    return {weight: tuple(needing) for weight, needing in turns.items()}


def turns_ahead(turns: Sequence[int], turn: int, cycle: int) -> int:
    """Turns from `turn` until the next of `turns`, 0 when it is one of them, in a cycle of that many turns."""
    place = bisect_left(turns, turn)
    return turns[place] - turn if place < len(turns) else turns[0] + cycle - turn

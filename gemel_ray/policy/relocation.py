"""Local search for a placement: single queries that move, and pairs that swap, while that makes it better."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from operator import itemgetter

from gemel_ray.policy.fleet import EPSILON, Box, Fleet

# Steps of relief for each query, sweeps over all queries to spare bytes, exchanges looked at in all, and nodes tried
# for a swap by a query that would rather be there; counted rather than timed, so that every machine finds the same.
_STEPS_PER_QUERY = 20
_SWEEPS = 5
_MOST_TRIED = 1_500_000
_SWAPPED_WITH = 2


@dataclass(frozen=True, slots=True)
class Exchange:
    """A query goes to a node, and maybe one from there comes back."""

    query: int
    node: int
    back: int | None = None


class Draft:
    """A placement in the making."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.boxes = [Box(fleet, node) for node in range(len(fleet.nodes))]
        self.node_of: dict[int, int] = {}
        self.tried = 0

    @property
    def worst(self) -> float:
        """The highest pressure of any node."""
        return max((box.pressure for box in self.boxes), default=0.0)

    @property
    def cost(self) -> tuple[float, int, int]:
        """Less is better: the worst query's loss, then bytes held, then those that do not fit. Without rounding noise;
        nothing is gained by pressures below 1."""
        held_bytes = sum(box.weights_bytes for box in self.boxes)
        return round(max(self.worst, 1.0), 8), held_bytes, sum(box.over_bytes for box in self.boxes)

    def put(self, query: int, node: int) -> None:
        """Place a query, or move it."""
        if (before := self.node_of.get(query)) is not None:
            self.boxes[before].change(query, None)
        self.boxes[node].change(None, query)
        self.node_of[query] = node

    def remove(self, query: int) -> None:
        """Take a query off its node."""
        self.boxes[self.node_of.pop(query)].change(query, None)

    def apply(self, exchange: Exchange) -> None:
        """Carry an exchange out."""
        here = self.node_of[exchange.query]
        self.boxes[here].change(exchange.query, exchange.back)
        self.boxes[exchange.node].change(exchange.back, exchange.query)
        self.node_of[exchange.query] = exchange.node
        if exchange.back is not None:
            self.node_of[exchange.back] = here

    def copy(self) -> Draft:
        """The same placement, to be changed by itself."""
        twin = Draft(self.fleet)
        for query, node in self.node_of.items():
            twin.put(query, node)
        return twin

    def outcome(self, exchange: Exchange) -> tuple[float, int]:
        """The higher pressure of the two nodes afterwards, and how many more bytes both hold."""
        self.tried += 1
        here, there = self.boxes[self.node_of[exchange.query]], self.boxes[exchange.node]
        less_bytes = here.growth_bytes(exchange.query, exchange.back)
        more_bytes = there.growth_bytes(exchange.back, exchange.query)
        pressure = max(
            here.pressure_after(exchange.query, exchange.back, less_bytes),
            there.pressure_after(exchange.back, exchange.query, more_bytes),
        )
        return pressure, less_bytes + more_bytes

    def is_spent(self) -> bool:
        """Whether enough has been looked at."""
        return self.tried >= _MOST_TRIED


def relieve(draft: Draft, movable: Collection[int], *, limit: float = 1.0) -> None:
    """Lower the highest pressure, down to the limit: moves off the busiest node, and swaps where no move helps."""
    for _ in range(_STEPS_PER_QUERY * len(draft.node_of)):
        busiest = max(draft.boxes, key=lambda box: box.pressure)
        if busiest.pressure <= limit + EPSILON or draft.is_spent():
            return
        leaving = sorted(busiest.queries.intersection(movable))
        exchange = _relief(draft, busiest, leaving, None, limit) or _relief(draft, busiest, leaving, movable, limit)
        if exchange is None:
            return
        draft.apply(exchange)


def _relief(
    draft: Draft, busiest: Box, leaving: Collection[int], partners: Collection[int] | None, limit: float
) -> Exchange | None:
    """What leaves both nodes least busy, then costs fewest bytes, with the least busy node that is of any help."""
    best, least = None, (busiest.pressure - EPSILON, -math.inf)
    for there in sorted(draft.boxes, key=lambda box: box.pressure):
        if best is not None or there is busiest:
            break
        for exchange in _exchanges(draft, leaving, there, partners):
            if there.load_after(exchange.back, exchange.query) > least[0]:
                continue
            pressure, growth_bytes = draft.outcome(exchange)
            if (found := (max(pressure, limit), growth_bytes)) < least:
                best, least = exchange, found
    return best


def _exchanges(
    draft: Draft, leaving: Collection[int], there: Box, partners: Collection[int] | None
) -> Iterator[Exchange]:
    """Moves to a node; swaps with those of its queries that are partners, where such are given."""
    allowed = draft.fleet.allowed
    others = [None] if partners is None else sorted(there.queries.intersection(partners))
    for query in leaving:
        if there.node in allowed[query]:
            here = draft.node_of[query]
            for other in others:
                if other is None or here in allowed[other]:
                    yield Exchange(query, there.node, other)


def gather(draft: Draft, movable: Collection[int], *, limit: float) -> None:
    """Spare bytes without any node's pressure rising above the limit.

    Where none are spared at once, queries go where more have weights in common with them, since a weight is spared
    only once its last user has left. Bytes fall, or else that kinship grows, so that no placement comes twice.
    """
    for _ in range(_SWEEPS):
        changed = False
        for query in sorted(movable):
            if draft.is_spent():
                return
            if (exchange := _gathering(draft, query, movable, limit)) is not None:
                draft.apply(exchange)
                changed = True
        if not changed:
            return


def _gathering(draft: Draft, query: int, movable: Collection[int], limit: float) -> Exchange | None:
    """The move of a query that spares most; where none does, a swap with a query of a node it would rather be on."""
    here = draft.boxes[draft.node_of[query]]
    wanted = _wanted(draft, query, here)
    best, most = None, (0, 0)
    for there, gain in wanted:
        if gain > most and there.load_after(None, query) <= limit + EPSILON:
            pressure, _ = draft.outcome(Exchange(query, there.node))
            if pressure <= limit + EPSILON:
                best, most = Exchange(query, there.node), gain
    # Where it would gain most; to look at them all costs a large fleet seconds, and finds little more.
    for there, _ in nlargest(_SWAPPED_WITH, wanted, key=itemgetter(1)) if best is None else ():
        for exchange in _exchanges(draft, [query], there, movable):
            if (gain := _swap_gain(draft, exchange, limit)) > most:
                best, most = exchange, gain
    return best


def _wanted(draft: Draft, query: int, here: Box) -> list[tuple[Box, tuple[int, int]]]:
    """Nodes on which a query would take fewer bytes, or as many and have more in common: bytes and kinship gained."""
    draft.tried += 1
    own_bytes, less_bytes, kinship = draft.fleet.own_bytes[query], -here.growth_bytes(query, None), here.kinship(query)
    found = []
    for node in draft.fleet.allowed[query]:
        there = draft.boxes[node]
        # Where nothing is there already, nothing is to be gained.
        if there is here or (more_bytes := there.growth_bytes(None, query)) >= own_bytes:
            continue
        gain = (less_bytes - more_bytes, there.kinship(query) - kinship)
        if gain > (0, 0):
            found.append((there, gain))
    return found


def _swap_gain(draft: Draft, exchange: Exchange, limit: float) -> tuple[int, int]:
    """Bytes spared and kinship gained; nothing where a node would be too busy."""
    query, other = exchange.query, exchange.back
    assert other is not None, "a swap has two sides"
    fleet, here, there = draft.fleet, draft.boxes[draft.node_of[query]], draft.boxes[exchange.node]
    if max(there.load_after(other, query), here.load_after(query, other)) > limit + EPSILON:
        return 0, 0
    pressure, growth_bytes = draft.outcome(exchange)
    if pressure > limit + EPSILON:
        return 0, 0
    common_bytes = sum(fleet.piece_bytes[piece] for piece in fleet.pieces[query] & fleet.pieces[other])
    kinship = there.kinship(query) - here.kinship(query) + here.kinship(other) - there.kinship(other)
    return -growth_bytes, kinship - 2 * common_bytes


def go_home(draft: Draft, homes: Mapping[int, int], *, limit: float) -> None:
    """Take back moves that turn out to be of no use: alone, each leaves every node within the limit."""
    changed = True
    while changed:
        changed = False
        for query in sorted(homes):
            home = draft.boxes[homes[query]]
            if draft.node_of[query] == home.node:
                continue
            if home.pressure_after(None, query, home.growth_bytes(None, query)) <= limit + EPSILON:
                draft.put(query, home.node)
                changed = True

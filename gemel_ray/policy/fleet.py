"""A fleet while queries are placed on it: what each node would hold and how busy it would be, kept up move by move.

Expected goodput. A node's device computes for `load` of its time: the sum of fps * run_ms(1) / 1000. Where weights and
the largest workspace exceed its memory by `over_bytes`, Belady's rule reloads about that much a round, and a round must
end within slo_ms - run_ms for a frame to be in time; so swapping takes a share of another 1.15 * over_bytes /
load_bytes_per_ms / (slo_ms - run_ms), for that query. Both together, by the 0.85 of its time that a device can be asked
for without losing frames, are the query's pressure; its expected goodput is min(1, 1 / pressure), and a node's pressure
is that of its most impatient query. Own derivation; the two factors are fitted: over 150 random simulated nodes the
worst query's goodput was 0.09 off on average, in either direction alike. It leaves out that frames wait for each
other's inferences, so where run_ms is close to slo_ms it expects too much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest

from gemel_ray.policy.duty_cycle import bundle
from gemel_ray.policy.planning import ServedQuery
from gemel_ray.spec.errors import OverBudgetError, ServingError, nearest
from gemel_ray.spec.placement import NodeCapacity
from gemel_ray.spec.profile import DeviceProfile

# Share of a device's time that can be asked for before frames are lost; what a round reloads by what does not fit.
USABLE_FRACTION = 0.85
RELOADED = 1.15
# Pressures closer than this are equal.
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Cost:
    """What one query costs on one kind of device, frame by frame."""

    # Share of the usable part of the device's time.
    load: float
    workspace_bytes: int
    # slo_ms - run_ms; infinite for a query that is late everywhere, so that it hinders no other one.
    patience_ms: float


_NOTHING, _NOBODY = Cost(0.0, 0, math.inf), -1


@dataclass(frozen=True, slots=True)
class Fleet:
    """The whole problem with queries, nodes and pieces of weights as numbers, in the order given.

    A piece is all that the same queries use; see policy.duty_cycle.bundle.
    """

    queries: tuple[str, ...]
    nodes: tuple[NodeCapacity, ...]
    pieces: tuple[frozenset[int], ...]
    piece_bytes: tuple[int, ...]
    own_bytes: tuple[int, ...]
    # By node, then by query.
    costs: tuple[tuple[Cost, ...], ...]
    # What does not fit goes at this rate, which allows for more than that being reloaded.
    swap_bytes_per_ms: tuple[float, ...]
    # Nodes that hold the query by itself and, where there are such, run it within its SLO.
    allowed: tuple[tuple[int, ...], ...]
    # Queries that no node which holds them runs within their SLO.
    late: frozenset[int]

    def twin(self, node: int) -> tuple[int, int, float]:
        """Equal for nodes that are alike."""
        return self.nodes[node].memory_bytes, id(self.costs[node]), self.swap_bytes_per_ms[node]

    def goodput(self, query: int, node: int, over_bytes: int, load: float) -> float:
        """Expected for one query, given its node's excess of bytes and its load."""
        if query in self.late or (patience_ms := self.costs[node][query].patience_ms) <= 0:
            return 0.0
        return 1 / max(load + over_bytes / self.swap_bytes_per_ms[node] / patience_ms, 1.0)


class Box:
    """One node of a fleet and the queries it holds at the moment."""

    def __init__(self, fleet: Fleet, node: int) -> None:
        self.node = node
        self.queries: set[int] = set()
        self.weights_bytes = 0
        self.workspace_bytes = 0
        self.load = 0.0
        self.pressure = 0.0
        self._fleet = fleet
        self._memory_bytes = fleet.nodes[node].memory_bytes
        self._swap_bytes_per_ms = fleet.swap_bytes_per_ms[node]
        # The two queries of largest workspace, and the two of least patience: one of them may be about to leave.
        self._largest = [(0, _NOBODY)] * 2
        self._hastiest = [(math.inf, _NOBODY)] * 2
        self._costs = fleet.costs[node]
        # By piece.
        self._users = [0] * len(fleet.piece_bytes)

    @property
    def free_bytes(self) -> int:
        """Memory beside all weights and the largest workspace; negative where they do not fit together."""
        return self._memory_bytes - self.weights_bytes - self.workspace_bytes

    @property
    def over_bytes(self) -> int:
        """What exceeds the memory."""
        return max(-self.free_bytes, 0)

    def growth_bytes(self, leaving: int | None, coming: int | None) -> int:
        """How many more bytes of weights the node would hold; negative for fewer."""
        users, size = self._users, self._fleet.piece_bytes
        gone = self._fleet.pieces[leaving] if leaving is not None else frozenset[int]()
        new = self._fleet.pieces[coming] if coming is not None else frozenset[int]()
        growth_bytes = 0
        for piece in new:
            if not users[piece]:
                growth_bytes += size[piece]
        for piece in gone:
            if users[piece] == 1 and piece not in new:
                growth_bytes -= size[piece]
        return growth_bytes

    def load_after(self, leaving: int | None, coming: int | None) -> float:
        """The least that the node's pressure can be once a query has left and another one has come."""
        load = self.load
        if coming is not None:
            load += self._costs[coming].load
        if leaving is not None:
            load -= self._costs[leaving].load
        return load

    def pressure_after(self, leaving: int | None, coming: int | None, growth_bytes: int) -> float:
        """The node's pressure once a query has left and another one has come, which makes its weights grow so much."""
        load = self.load_after(leaving, coming)
        room_bytes = self._memory_bytes - self.weights_bytes - growth_bytes
        new = self._costs[coming] if coming is not None else _NOTHING
        if max(self.workspace_bytes, new.workspace_bytes) <= room_bytes:
            return load
        first, second = self._largest
        space_bytes = second[0] if first[1] == leaving else first[0]
        over_bytes = max(space_bytes, new.workspace_bytes) - room_bytes
        if over_bytes <= 0:
            return load
        soonest, later = self._hastiest
        patience_ms = later[0] if soonest[1] == leaving else soonest[0]
        return load + self._swapping(over_bytes, min(patience_ms, new.patience_ms))

    def change(self, leaving: int | None, coming: int | None) -> None:
        """Let a query leave and another one come."""
        self.weights_bytes += self.growth_bytes(leaving, coming)
        if leaving is not None:
            self.queries.remove(leaving)
            for piece in self._fleet.pieces[leaving]:
                self._users[piece] -= 1
        if coming is not None:
            self.queries.add(coming)
            for piece in self._fleet.pieces[coming]:
                self._users[piece] += 1
        there = [(self._costs[query], query) for query in self.queries]
        self._largest = nlargest(2, [(cost.workspace_bytes, query) for cost, query in there] + [(0, _NOBODY)] * 2)
        self._hastiest = nsmallest(2, [(cost.patience_ms, query) for cost, query in there] + [(math.inf, _NOBODY)] * 2)
        self.workspace_bytes = self._largest[0][0]
        # Afresh and in no order, so that the same queries have the same load by whatever way they came.
        self.load = math.fsum(cost.load for cost, _ in there)
        self.pressure = self.load + self._swapping(self.over_bytes, self._hastiest[0][0])

    def shared_bytes(self) -> int:
        """Bytes of weights that two or more of its queries use."""
        held = {piece for query in self.queries for piece in self._fleet.pieces[query]}
        return sum(self._fleet.piece_bytes[piece] for piece in held if self._users[piece] > 1)

    def common_bytes(self, query: int) -> int:
        """Bytes of one of its queries' weights that others of them use as well."""
        return sum(self._fleet.piece_bytes[piece] for piece in self._fleet.pieces[query] if self._users[piece] > 1)

    def kinship(self, query: int) -> int:
        """Bytes that a query has in common with each query there, summed up; its own not counted."""
        is_there = query in self.queries
        return sum(
            self._fleet.piece_bytes[piece] * (self._users[piece] - is_there) for piece in self._fleet.pieces[query]
        )

    def _swapping(self, over_bytes: int, patience_ms: float) -> float:
        """Share of the usable part of the device's time that goes into swapping."""
        if over_bytes <= 0:
            return 0.0
        return over_bytes / self._swap_bytes_per_ms / patience_ms if patience_ms > 0 else math.inf


def fleet_of(
    queries: Mapping[str, ServedQuery],
    weight_bytes: Mapping[str, int],
    nodes: Sequence[NodeCapacity],
    profiles: Mapping[str, DeviceProfile],
) -> Fleet:
    """The problem in numbers. `profiles` are by node name.

    Raises OverBudgetError that names every query no node can hold, ServingError for a profile that lacks a query.
    """
    bundles = bundle(
        {name: query.weights for name, query in queries.items()}, weight_bytes, dict.fromkeys(weight_bytes, 0.0)
    )
    pieces: dict[str, set[int]] = {name: set() for name in queries}
    for place, each in enumerate(bundles):
        for name in each.users:
            pieces[name].add(place)
    piece_bytes = tuple(each.bytes for each in bundles)
    own_bytes = tuple(sum(piece_bytes[piece] for piece in pieces[name]) for name in queries)
    costs = _costs(queries, nodes, profiles)
    holding = _holding(tuple(queries), own_bytes, nodes, costs)
    on_time = [tuple(node for node in fits if costs[node][place].patience_ms > 0) for place, fits in enumerate(holding)]
    late = frozenset(place for place, found in enumerate(on_time) if not found)
    return Fleet(
        queries=tuple(queries),
        nodes=tuple(nodes),
        pieces=tuple(map(frozenset, pieces.values())),
        piece_bytes=piece_bytes,
        own_bytes=own_bytes,
        costs=_without_the_late(costs, late),
        swap_bytes_per_ms=tuple(profiles[node.name].load_bytes_per_ms * USABLE_FRACTION / RELOADED for node in nodes),
        allowed=tuple(found or fits for found, fits in zip(on_time, holding, strict=True)),
        late=late,
    )


def _costs(
    queries: Mapping[str, ServedQuery], nodes: Sequence[NodeCapacity], profiles: Mapping[str, DeviceProfile]
) -> list[tuple[Cost, ...]]:
    """By node, then query; nodes with the same profile have the very same costs."""
    found: dict[int, tuple[Cost, ...]] = {}
    for node in nodes:
        profile = profiles[node.name]
        if id(profile) not in found:
            found[id(profile)] = tuple(_cost(name, query, node.name, profile) for name, query in queries.items())
    return [found[id(profiles[node.name])] for node in nodes]


def _cost(name: str, query: ServedQuery, node: str, profile: DeviceProfile) -> Cost:
    if name not in profile.queries:
        raise ServingError(
            f"the profile of {profile.device}, for node {node!r}, lacks query {name!r} "
            f"({nearest(name, profile.queries)}); profile this release on that device"
        )
    run_ms, first = profile.run_ms(name, 1), profile.queries[name].batch_sizes[0]
    workspace_bytes = profile.queries[name].workspace_bytes[first]
    return Cost(query.fps * run_ms / 1000 / USABLE_FRACTION, workspace_bytes, query.slo_ms - run_ms)


def _without_the_late(costs: Sequence[tuple[Cost, ...]], late: frozenset[int]) -> tuple[tuple[Cost, ...], ...]:
    if not late:
        return tuple(costs)
    changed = {
        id(row): tuple(
            Cost(cost.load, cost.workspace_bytes, math.inf) if place in late else cost for place, cost in enumerate(row)
        )
        for row in costs
    }
    return tuple(changed[id(row)] for row in costs)


def _holding(
    queries: Sequence[str], own_bytes: Sequence[int], nodes: Sequence[NodeCapacity], costs: Sequence[Sequence[Cost]]
) -> list[tuple[int, ...]]:
    """The nodes that hold each query by itself."""
    found = [
        tuple(
            number
            for number, node in enumerate(nodes)
            if own_bytes[place] + costs[number][place].workspace_bytes <= node.memory_bytes
        )
        for place in range(len(queries))
    ]
    problems = [
        _does_not_fit(queries[place], own_bytes[place], [row[place].workspace_bytes for row in costs], nodes)
        for place, fits in enumerate(found)
        if not fits
    ]
    if problems:
        raise OverBudgetError("\n".join(problems))
    return found


def _does_not_fit(name: str, own_bytes: int, workspaces: Sequence[int], nodes: Sequence[NodeCapacity]) -> str:
    """About the node that comes nearest to holding the query, which is the largest one where all are alike."""
    lacking = [own_bytes + space - node.memory_bytes for node, space in zip(nodes, workspaces, strict=True)]
    nearest_node = lacking.index(min(lacking))
    node, workspace_bytes = nodes[nearest_node], workspaces[nearest_node]
    return (
        f"query {name!r} fits no node: alone it needs {own_bytes + workspace_bytes} bytes ({own_bytes} of weights, "
        f"{workspace_bytes} of workspace at batch size 1), and {node.name!r}, which comes nearest, offers "
        f"{node.memory_bytes}; give a node {lacking[nearest_node]} bytes more, use a smaller model or leave it out"
    )

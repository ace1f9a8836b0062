"""Placement: queries on nodes, so that the worst query's expected goodput is highest, then most bytes are spared.

Hardest first, greedily, under several limits on how busy a node may get; then local search. What is expected of a node
is estimated, see policy.fleet: its weights may exceed its memory, and are swapped, and its queries may ask for more
than its device's time, and lose frames; both are told, neither is refused.

Gap to the exact solution (HiGHS) on 50 generated fleets of 10 queries and 3 nodes: none, in the worst query's goodput
and in bytes alike, where dealing in turn is 28 % off on average and 62 % at most (jobs/bench_placement.py). For large
fleets no optimum is known.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from gemel_ray.policy.fleet import EPSILON, USABLE_FRACTION, Fleet, fleet_of
from gemel_ray.policy.planning import ServedQuery
from gemel_ray.policy.relocation import Draft, gather, go_home, relieve
from gemel_ray.spec.errors import InputError, nearest
from gemel_ray.spec.placement import NodeCapacity, PlacedNode, PlacedQuery, Placement
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.units import format_bytes

log = logging.getLogger(__name__)

Profiles = DeviceProfile | Mapping[str, DeviceProfile]
# Limits tried between what no placement can undercut and what a first one reached.
_HALVINGS = 2
# Rebuildings of a few nodes, and exchanges looked at in all of them: most of what a small fleet takes, little of what a
# large one does. Counted rather than timed, so that every machine finds the same placement.
_RUINS = 150
_MOST_TRIED_IN_RUINS = 10_000
# What runs is moved until the worst node's pressure is within this factor of what moving on would reach: the last few
# percent take most of the moves.
_CONTENT = 1.03


def place(
    queries: Mapping[str, ServedQuery],
    weight_bytes: Mapping[str, int],
    nodes: Sequence[NodeCapacity],
    profiles: Profiles,
    *,
    current: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Placement:
    """A node for every query. `profiles` is one for all nodes, or by node name. Deterministic for a seed.

    With `current`, query to node, a query leaves a node that is still there only if that raises the worst query's
    expected goodput, and no more of them than gain most of it: bytes spared are no reason to move what runs. Without it
    the placement is never worse than `deal_in_turn`.

    Raises OverBudgetError that names every query which fits no node, even alone, and what it lacks; ServingError for a
    profile without a query, InputError for no nodes, two of one name, or one without a profile.
    """
    fleet = fleet_of(queries, weight_bytes, nodes, _by_node(nodes, profiles))
    homes = _homes(fleet, current or {})
    draft = _around(fleet, homes) if homes else _afresh(fleet, random.Random(seed))
    placement = placement_of(draft, current or {})
    placement.verify()
    log.info(
        "placement: %d queries on %d nodes, worst expected goodput %.3f, %d bytes spared, %d moved",
        len(fleet.queries), len(fleet.nodes), placement.worst_goodput_fraction, placement.spared_bytes,
        len(placement.moved),
    )  # fmt: skip
    return placement


def deal_in_turn(
    queries: Mapping[str, ServedQuery],
    weight_bytes: Mapping[str, int],
    nodes: Sequence[NodeCapacity],
    profiles: Profiles,
) -> Placement:
    """The baseline: queries dealt to nodes one after the other, passing over nodes that do not hold them. See place."""
    return placement_of(_dealt(fleet_of(queries, weight_bytes, nodes, _by_node(nodes, profiles))), {})


def _by_node(nodes: Sequence[NodeCapacity], profiles: Profiles) -> Mapping[str, DeviceProfile]:
    if not nodes:
        raise InputError("there is no node to place queries on; add one to the workload's 'nodes'")
    names = [node.name for node in nodes]
    if again := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{names.count(again[0])} nodes are named {again[0]!r}; give each its own name")
    if isinstance(profiles, DeviceProfile):
        return dict.fromkeys(names, profiles)
    if missing := [name for name in names if name not in profiles]:
        raise InputError(f"node {missing[0]!r} has no profile; {nearest(missing[0], profiles)}")
    return profiles


def _homes(fleet: Fleet, current: Mapping[str, str]) -> dict[int, int]:
    """Where queries run now, as far as that node is still there and fit for them."""
    numbers = {node.name: number for number, node in enumerate(fleet.nodes)}
    homes = {place: numbers.get(current.get(name, "")) for place, name in enumerate(fleet.queries)}
    return {query: node for query, node in homes.items() if node is not None and node in fleet.allowed[query]}


def _around(fleet: Fleet, homes: Mapping[int, int]) -> Draft:
    """Find places for the homeless; move others only where that makes the worst node less busy."""
    draft = Draft(fleet)
    for query, node in homes.items():
        draft.put(query, node)
    homeless = [query for query in range(len(fleet.queries)) if query not in homes]
    _greedily(draft, _hardest_first(fleet, homeless), limit=max(draft.worst, 1.0))
    relieve(draft, homeless)
    gather(draft, homeless, limit=max(draft.worst, 1.0))
    thorough = draft.copy()
    relieve(thorough, range(len(fleet.queries)))
    limit = max(thorough.worst * _CONTENT, 1.0)
    relieve(draft, range(len(fleet.queries)), limit=limit)
    go_home(draft, homes, limit=max(draft.worst, limit))
    return draft


def _afresh(fleet: Fleet, rng: random.Random) -> Draft:
    """The better of a greedy and a dealt start, improved; then again and again with a few nodes emptied."""
    every = range(len(fleet.queries))
    best = _improved(min(_starts(fleet), key=lambda draft: draft.cost), every)
    dealt = _dealt(fleet)
    if dealt.cost < best.cost:
        best = min(best, _improved(dealt, every), key=lambda draft: draft.cost)
    tried = 0
    for _ in range(_RUINS):
        if tried >= _MOST_TRIED_IN_RUINS:
            break
        found = _rebuilt(best.copy(), rng)
        tried += found.tried
        if found.cost <= best.cost:
            best = found
    return best


def _rebuilt(draft: Draft, rng: random.Random) -> Draft:
    """Two or three nodes emptied, the busiest among them where it is too busy, and filled again in another order.

    Ruin and recreate (Schrimpf et al., Journal of Computational Physics 159, 2000).
    """
    fleet, count = draft.fleet, len(draft.fleet.nodes)
    ruined = set(rng.sample(range(count), min(rng.choice((2, 3)), count)))
    busiest = max(draft.boxes, key=lambda box: box.pressure)
    if busiest.pressure > 1 + EPSILON:
        ruined.add(busiest.node)
    homeless = [query for query, node in draft.node_of.items() if node in ruined]
    for query in homeless:
        draft.remove(query)
    order = sorted(homeless, key=lambda query: _hardness(fleet, query) * rng.uniform(0.1, 1), reverse=True)
    _greedily(draft, order, limit=max(draft.worst, rng.choice((1.0, busiest.pressure)), 1.0))
    relieve(draft, range(len(fleet.queries)))
    gather(draft, homeless, limit=max(draft.worst, 1.0))
    return draft


def _improved(draft: Draft, movable: Collection[int]) -> Draft:
    relieve(draft, movable)
    gather(draft, movable, limit=max(draft.worst, 1.0))
    return draft


def _starts(fleet: Fleet) -> Iterator[Draft]:
    """Greedy placements, hardest queries or whole families first, under limits that close in on the least possible."""
    every = range(len(fleet.queries))
    for order in (_hardest_first(fleet, every), _families_first(fleet)):
        floor, limit = _least_pressure(fleet), 1.0
        for _ in range(1 + _HALVINGS):
            draft = Draft(fleet)
            _greedily(draft, order, limit=limit)
            yield draft
            if draft.worst <= max(floor, 1.0) + EPSILON:
                break
            limit = (floor + draft.worst) / 2


def _least_pressure(fleet: Fleet) -> float:
    """No placement has a lower highest pressure: all queries at their cheapest, spread evenly."""
    loads = [min(fleet.costs[node][query].load for node in fleet.allowed[query]) for query in range(len(fleet.queries))]
    return max(sum(loads) / len(fleet.nodes), *loads, 1.0) if loads else 1.0


def _hardness(fleet: Fleet, query: int) -> float:
    """The larger share of a node's time or memory that the query takes, where it takes least."""
    return min(
        max(
            fleet.costs[node][query].load,
            (fleet.own_bytes[query] + fleet.costs[node][query].workspace_bytes) / fleet.nodes[node].memory_bytes,
        )
        for node in fleet.allowed[query]
    )


def _hardest_first(fleet: Fleet, queries: Collection[int]) -> list[int]:
    return sorted(queries, key=lambda query: (-_hardness(fleet, query), query))


def _families_first(fleet: Fleet) -> list[int]:
    """Queries whose most shared bytes are the same ones come together, families of most bytes first."""

    users = Counter(piece for pieces in fleet.pieces for piece in pieces)
    weights = {piece: (count * fleet.piece_bytes[piece], -piece) for piece, count in users.items()}
    family = [max((weights[piece] for piece in pieces), default=(0, 0)) for pieces in fleet.pieces]
    return sorted(_hardest_first(fleet, range(len(fleet.queries))), key=lambda query: family[query], reverse=True)


def _greedily(draft: Draft, order: Sequence[int], *, limit: float) -> None:
    """Each query goes where it adds fewest bytes within the limit on pressure; else where least pressure results."""
    for query in order:
        best, least = -1, None
        empty = set()
        for node in draft.fleet.allowed[query]:
            box = draft.boxes[node]
            if not box.queries:
                if (twin := draft.fleet.twin(node)) in empty:
                    continue
                empty.add(twin)
            growth_bytes = box.growth_bytes(None, query)
            pressure = box.pressure_after(None, query, growth_bytes)
            found = (max(pressure, limit), growth_bytes, pressure, -box.free_bytes)
            if least is None or found < least:
                best, least = node, found
        draft.put(query, best)


def _dealt(fleet: Fleet) -> Draft:
    draft, turn, count = Draft(fleet), 0, len(fleet.nodes)
    for query in range(len(fleet.queries)):
        node = min(fleet.allowed[query], key=lambda node: (node - turn) % count)
        draft.put(query, node)
        turn = (node + 1) % count
    return draft


def placement_of(draft: Draft, current: Mapping[str, str]) -> Placement:
    """A draft in words."""
    fleet = draft.fleet
    names = {query: fleet.nodes[node].name for query, node in draft.node_of.items()}
    moved = tuple(name for query, name in enumerate(fleet.queries) if name in current and current[name] != names[query])
    nodes = tuple(
        PlacedNode(
            name=node.name,
            memory_bytes=node.memory_bytes,
            queries=tuple(fleet.queries[query] for query in sorted(box.queries)),
            shared_bytes=(shared_bytes := box.shared_bytes()),
            private_bytes=box.weights_bytes - shared_bytes,
            workspace_bytes=box.workspace_bytes,
            load_fraction=box.load * USABLE_FRACTION,
            pressure=box.pressure,
        )
        for node, box in zip(fleet.nodes, draft.boxes, strict=True)
    )
    return Placement(nodes, tuple(_placed(draft, query, current) for query in range(len(fleet.queries))), moved)


def _placed(draft: Draft, query: int, current: Mapping[str, str]) -> PlacedQuery:
    fleet, box = draft.fleet, draft.boxes[draft.node_of[query]]
    cost = fleet.costs[box.node][query]
    return PlacedQuery(
        name=fleet.queries[query],
        node=fleet.nodes[box.node].name,
        weights_bytes=fleet.own_bytes[query],
        workspace_bytes=cost.workspace_bytes,
        load_fraction=cost.load * USABLE_FRACTION,
        goodput_fraction=fleet.goodput(query, box.node, box.over_bytes, box.load),
        reason=_reason(draft, query, current),
    )


def _reason(draft: Draft, query: int, current: Mapping[str, str]) -> str:
    """Why there, in a sentence for the operator."""
    fleet, box = draft.fleet, draft.boxes[draft.node_of[query]]
    parts = []
    if query in fleet.late:
        parts.append("no node that holds it runs it within its SLO")
    before = current.get(fleet.queries[query])
    if before == fleet.nodes[box.node].name:
        parts.append("stays")
    elif before is not None:
        is_home = before in {fleet.nodes[node].name for node in fleet.allowed[query]}
        why = "to relieve it" if is_home else "which is gone or no longer fit for it"
        parts.append(f"moves from {before}, {why}")
    common_bytes = box.common_bytes(query)
    if common_bytes:
        own = format_bytes(fleet.own_bytes[query])
        parts.append(f"{format_bytes(common_bytes)} of its {own} are there for others too")
    elif len(box.queries) > 1:
        parts.append("shares nothing with the others there")
    return "; ".join(parts) or "alone there"

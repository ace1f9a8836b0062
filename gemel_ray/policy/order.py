"""The round-robin order that moves the fewest bytes under a budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import permutations

from gemel_ray.policy.duty_cycle import MEASURED_ROUNDS, Bundle, Round, TurnCost, bundle
from gemel_ray.policy.eviction import turns_ahead, turns_of
from gemel_ray.policy.residency import plan_swap

# Up to here every order is tried: 720 of them, as an order may start anywhere.
_EXACT_QUERIES = 7
# Weights that all exactly compared orders may use in sum: about a second's work. Beyond, the best few by the fluid
# prediction are compared.
_MOST_EXACT_WEIGHTS = 100_000
_SHORTLIST = 20
# Up to here the local search compares orders as they are played, from two starts; beyond, by the fluid prediction.
_PLAYED_QUERIES = 16
# Orders that the local search may look at by prediction; counted rather than timed, so that every machine chooses the
# same order.
_MOST_TRIED = 100

Order = tuple[str, ...]


def cycle_bytes(
    order: Sequence[str],
    weights: Mapping[str, Sequence[str]],
    weight_bytes: Mapping[str, int],
    *,
    budget_bytes: int,
    workspace_bytes: Mapping[str, int],
) -> float:
    """Bytes that the residency policy loads in one round of that order, layer by layer.

    The mean of MEASURED_ROUNDS, once a round has gone before. Raises OverBudgetError when one query alone exceeds
    the budget.
    """
    needing = turns_of([weights[query] for query in order])
    together = set(needing.values())
    resident: set[str] = set()
    rounds_bytes: list[int] = []
    for _ in range(1 + MEASURED_ROUNDS):
        before, loaded_bytes = resident, 0
        for turn, query in enumerate(order):
            ahead = {turns: turns_ahead(turns, turn, len(order)) for turns in together}
            swap = plan_swap(
                resident,
                weights[query],
                weight_bytes,
                budget_bytes=budget_bytes - workspace_bytes.get(query, 0),
                next_use={weight: ahead[needing[weight]] for weight in resident}.__getitem__,
            )
            resident = (resident - {*swap.evict}) | {*swap.load}
            loaded_bytes += sum(weight_bytes[weight] for weight in swap.load)
        rounds_bytes.append(loaded_bytes)
        if resident == before:
            break
    measured = rounds_bytes[1:] or rounds_bytes
    return sum(measured) / len(measured)


def choose_order(
    weights: Mapping[str, Sequence[str]],
    weight_bytes: Mapping[str, int],
    *,
    budget_bytes: int,
    workspace_bytes: Mapping[str, int],
    exact_queries: int = _EXACT_QUERIES,
) -> Order:
    """The order of fewest `cycle_bytes`; the first of equals, and never one worse than the given.

    Exact up to `exact_queries`, where their weights are few; where there are many, the best are picked by the fluid
    prediction first. A local search beyond; jobs/bench_order.py shows how far it is from the best. Deterministic.
    Raises OverBudgetError when one query alone exceeds the budget.
    """
    given = tuple(weights)

    def moved_bytes(order: Order) -> float:
        return cycle_bytes(order, weights, weight_bytes, budget_bytes=budget_bytes, workspace_bytes=workspace_bytes)

    if len(given) < 3 or not moved_bytes(given):
        return given
    bundles = bundle(weights, weight_bytes, dict.fromkeys(weight_bytes, 0.0))
    costs = {query: TurnCost(0.0, workspace_bytes.get(query, 0)) for query in given}

    def predicted_bytes(order: Order) -> float:
        return sum(load.bytes for load in Round(order, bundles).loads(costs, budget_bytes=budget_bytes, overlap=False))

    if len(given) <= exact_queries:
        every: list[Order] = [(given[0], *rest) for rest in permutations(given[1:])]
        if len(every) * sum(map(len, weights.values())) > _MOST_EXACT_WEIGHTS:
            every = [given, *nsmallest(_SHORTLIST, every, key=predicted_bytes)]
        return min(every, key=moved_bytes)
    chained = _chain(given, _shared_bytes(bundles))
    if len(given) <= _PLAYED_QUERIES:
        most_tried = _MOST_EXACT_WEIGHTS // (2 * sum(map(len, weights.values())))
        found = [_improve(start, moved_bytes, most_tried) for start in (chained, given)]
    else:
        found = [_improve(chained, predicted_bytes, _MOST_TRIED)]
    return min(given, chained, *found, key=moved_bytes)


def _shared_bytes(bundles: Sequence[Bundle]) -> defaultdict[tuple[str, str], int]:
    """Bytes that two queries have in common."""
    shared_bytes: defaultdict[tuple[str, str], int] = defaultdict(int)
    for each in bundles:
        for pair in permutations(each.users, 2):
            shared_bytes[pair] += each.bytes
    return shared_bytes


def _chain(queries: Order, shared_bytes: Mapping[tuple[str, str], int]) -> Order:
    """Always go on to the query that shares most bytes with the last one."""
    order, left = [queries[0]], list(queries[1:])
    while left:
        last = order[-1]
        order.append(max(left, key=lambda query: shared_bytes[last, query]))
        left.remove(order[-1])
    return tuple(order)


def _improve(order: Order, cost: Callable[[Order], float], most_tried: int) -> Order:
    """Change the order a little at a time until nothing makes it cheaper, or enough has been tried."""
    least, tried, improved = cost(order), 0, True
    while improved:
        improved = False
        for changed in _neighbours(order):
            tried += 1
            if tried > most_tried:
                return order
            if (found := cost(changed)) < least:
                order, least, improved = changed, found, True
                break
    return order


def _neighbours(order: Order) -> Iterator[Order]:
    """The order with a stretch behind the first query turned around (2-opt), short ones first, or with one query at
    another place (or-opt)."""
    for start, end in _stretches(len(order)):
        yield (*order[:start], *reversed(order[start:end]), *order[end:])
    for place in range(1, len(order)):
        left = (*order[:place], *order[place + 1 :])
        for other in range(1, len(order)):
            if abs(other - place) > 1:
                yield (*left[:other], order[place], *left[other:])


def _stretches(length: int) -> list[tuple[int, int]]:
    """Begin and end of every stretch behind the first query, short ones first."""
    return [(start, start + size) for size in range(2, length) for start in range(1, length - size + 1)]

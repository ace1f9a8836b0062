"""Residency: which weights stay on the device when the round robin moves on, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gemel_ray.spec.errors import OverBudgetError


@dataclass(frozen=True, slots=True)
class Swap:
    """What one turn of the round robin moves: evictions first, then loads, in the order they are needed."""

    evict: tuple[str, ...]
    load: tuple[str, ...]


def plan_swap(
    resident: Collection[str],
    needed: Sequence[str],
    weight_bytes: Mapping[str, int],
    *,
    budget_bytes: int,
    next_use: Callable[[str], float],
    pinned: Collection[str] = frozenset(),
) -> Swap:
    """Make every needed weight resident within the budget, loading exactly the missing ones.

    `next_use` says how far off each resident weight's next use is: what is furthest goes first (Belady's rule, the
    best there is where weights are small against the budget). It is only asked when room is short. Needed and pinned
    weights stay. Raises OverBudgetError when they alone exceed the budget.
    """
    kept_bytes = _total({*needed, *(weight for weight in pinned if weight in resident)}, weight_bytes)
    if kept_bytes > budget_bytes:
        raise OverBudgetError(
            f"needed and pinned weights hold {kept_bytes} bytes, {budget_bytes} are offered beside workspace; "
            "raise the budget, lower the batch size or place a query on another node"
        )
    return plan_ahead(resident, needed, weight_bytes, budget_bytes=budget_bytes, next_use=next_use, pinned=pinned)


def plan_ahead(
    resident: Collection[str],
    needed: Sequence[str],
    weight_bytes: Mapping[str, int],
    *,
    budget_bytes: int,
    next_use: Callable[[str], float],
    pinned: Collection[str] = frozenset(),
) -> Swap:
    """As `plan_swap`, but loads only those missing weights that fit beside pinned ones, and never raises.

    For loading ahead of a turn while another one computes.
    """
    held = set(resident)
    kept = held.intersection((*needed, *pinned))
    missing = [weight for weight in dict.fromkeys(needed) if weight not in held]
    load = that_fit(missing, weight_bytes, budget_bytes - _total(kept, weight_bytes))
    over_bytes = _total(held, weight_bytes) + _total(load, weight_bytes) - budget_bytes
    return Swap(_victims(held - kept, weight_bytes, next_use, over_bytes) if over_bytes > 0 else (), load)


def _total(weights: Iterable[str], weight_bytes: Mapping[str, int]) -> int:
    return sum(map(weight_bytes.__getitem__, weights))


def that_fit(missing: Iterable[str], weight_bytes: Mapping[str, int], room_bytes: int) -> tuple[str, ...]:
    """Of missing weights, in order, each one that fits into the room that those before it leave."""
    fitting = []
    for weight in missing:
        if weight_bytes[weight] <= room_bytes:
            room_bytes -= weight_bytes[weight]
            fitting.append(weight)
    return tuple(fitting)


def _victims(
    candidates: Iterable[str], weight_bytes: Mapping[str, int], next_use: Callable[[str], float], over_bytes: int
) -> tuple[str, ...]:
    """What frees at least `over_bytes`: furthest next use first; of equals the largest, so that few are moved."""
    chosen: list[str] = []
    for _, _, weight in sorted([(-next_use(name), -weight_bytes[name], name) for name in candidates]):
        if over_bytes <= 0:
            break
        chosen.append(weight)
        over_bytes -= weight_bytes[weight]
    return _without_surplus(chosen, weight_bytes, -over_bytes)


def _without_surplus(chosen: Sequence[str], weight_bytes: Mapping[str, int], surplus_bytes: int) -> tuple[str, ...]:
    """Spare what need not go after all, nearest next use first."""
    evict = []
    for weight in reversed(chosen):
        if weight_bytes[weight] <= surplus_bytes:
            surplus_bytes -= weight_bytes[weight]
        else:
            evict.append(weight)
    return tuple(reversed(evict))

"""The plan of one node: a release and a device's profile, turned into what the scheduler is to run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from gemel_ray.policy.batching import Demand, choose_batch_sizes, expect
from gemel_ray.policy.duty_cycle import Round, TurnCost, bundle
from gemel_ray.policy.order import choose_order
from gemel_ray.spec.errors import OverBudgetError, ServingError, nearest
from gemel_ray.spec.plan import Contention, EdgePlan, PlannedQuery
from gemel_ray.spec.profile import DeviceProfile, QueryProfile
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.weight_sets import first_layer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedQuery:
    """One query as a node serves it: the weights it needs resident, how many frames come, how soon each is due."""

    weights: tuple[str, ...]
    fps: float
    slo_ms: float


def plan_queries(
    queries: Mapping[str, ServedQuery],
    weight_bytes: Mapping[str, int],
    profile: DeviceProfile,
    *,
    budget_bytes: int,
    max_batch: int = 8,
    overlap: bool = True,
    order: Sequence[str] | None = None,
    largest_batches: bool = False,
) -> EdgePlan:
    """Order and batch sizes for queries on one device; the order is planned unless given.

    With `largest_batches` a turn may take as many frames as fit, whatever that does to the others' deadlines.

    Only measured batch sizes up to `max_batch` are chosen; between measured ones the costs of the next larger count.
    A profile that starts above 1 counts as if it started at 1. Raises OverBudgetError when one query alone does not
    fit, ServingError when the profile lacks a query.
    """
    weights = {name: query.weights for name, query in queries.items()}
    load_ms = {weight: profile.load_ms(count_bytes) for weight, count_bytes in weight_bytes.items()}
    costs = {
        name: _fitting_costs(
            name,
            _profile_of(name, profile),
            sum(weight_bytes[weight] for weight in weights[name]),
            budget_bytes=budget_bytes,
            max_batch=max_batch,
        )
        for name in queries
    }
    workspace_bytes = {name: by_size[1].workspace_bytes for name, by_size in costs.items()}
    if order is None:
        order = choose_order(weights, weight_bytes, budget_bytes=budget_bytes, workspace_bytes=workspace_bytes)
    planned_round = Round(order, bundle(weights, weight_bytes, load_ms))
    demands = {name: Demand(query.fps, query.slo_ms, costs[name]) for name, query in queries.items()}
    if largest_batches:
        sizes = {name: max(by_size) for name, by_size in costs.items()}
        chosen = expect(sizes, planned_round, demands, budget_bytes=budget_bytes, overlap=overlap)
    else:
        chosen = choose_batch_sizes(planned_round, demands, budget_bytes=budget_bytes, overlap=overlap)
    log.info(
        "plan: %d queries in %d bytes, duty cycle %.1f ms, worst goodput %.3f",
        len(order), budget_bytes, chosen.cycle_ms, chosen.score[0],
    )  # fmt: skip
    planned = tuple(_planned(name, weights[name], chosen.sizes[name], _profile_of(name, profile)) for name in order)
    contention = Contention(profile.run_slowdown, profile.load_slowdown)
    return EdgePlan(planned, weight_bytes, load_ms, budget_bytes, overlap, contention)


def in_order_of_use(plan: EdgePlan, manifest: Manifest, profile: DeviceProfile) -> EdgePlan:
    """The same plan, each query's weights in the order in which a run needs them, and after which part of it.

    What the profile says nothing about counts as needed from the start. The profile may be that of another release.
    """
    return replace(plan, queries=tuple(_in_order_of_use(query, manifest, profile) for query in plan.queries))


def _in_order_of_use(query: PlannedQuery, manifest: Manifest, profile: DeviceProfile) -> PlannedQuery:
    keys, first_use = manifest.queries[query.name].weights, profile.queries[query.name].first_use
    first_needed = {**_first_needed(keys, first_use), **first_use}
    at: dict[str, float] = {}
    for key, weight in keys.items():
        at[weight] = min(first_needed.get(key, 0.0), at.get(weight, 1.0))
    return replace(query, weights=tuple(sorted(query.weights, key=at.__getitem__)), needed_after=at)


def _first_needed(keys: Collection[str], first_use: Mapping[str, float]) -> dict[str, float]:
    """By key, when a weight set's first layer is needed, which is mostly that of its layers that is needed first."""
    key_of = {first_layer(key): key for key in keys}
    found: dict[str, float] = {}
    for path, at in first_use.items():
        if (key := _holder(path, key_of)) is not None:
            found[key] = min(at, found.get(key, 1.0))
    return found


def _holder(path: str, key_of: Mapping[str, str]) -> str | None:
    """The key of the weight set that a module belongs to, as far as keys tell: else it counts as the remainder's."""
    while path and path not in key_of:
        path = path.rpartition(".")[0]
    return key_of.get(path)


def _profile_of(name: str, profile: DeviceProfile) -> QueryProfile:
    if name not in profile.queries:
        raise ServingError(
            f"the profile of {profile.device} lacks query {name!r} ({nearest(name, profile.queries)}); "
            "profile this release on this device"
        )
    return profile.queries[name]


def _cost(profile: QueryProfile, batch_size: int) -> TurnCost:
    """Of the smallest measured batch size that holds so many frames."""
    measured = next(size for size in profile.batch_sizes if size >= batch_size)
    return TurnCost(profile.run_ms[measured], profile.workspace_bytes[measured])


def _fitting_costs(
    name: str, profile: QueryProfile, weights_bytes: int, *, budget_bytes: int, max_batch: int
) -> dict[int, TurnCost]:
    """Costs of batch size 1 and of all measured ones that fit beside the query's own weights."""
    sizes = {1, *(size for size in profile.batch_sizes if size <= max_batch)}
    costs = {size: _cost(profile, size) for size in sorted(sizes)}
    needed_bytes = weights_bytes + costs[1].workspace_bytes
    if needed_bytes > budget_bytes:
        raise OverBudgetError(
            f"query {name!r} alone needs {needed_bytes} bytes ({weights_bytes} of weights, {costs[1].workspace_bytes} "
            f"of workspace at batch size 1), the budget is {budget_bytes}; raise the node's memory or"
            " use a smaller model"
        )
    return {size: cost for size, cost in costs.items() if weights_bytes + _peak_bytes(profile, size) <= budget_bytes}


def _peak_bytes(profile: QueryProfile, batch_size: int) -> int:
    """The most workspace of any batch up to that size; measurements need not grow with the size."""
    return max(_cost(profile, size).workspace_bytes for size in range(1, batch_size + 1))


def _planned(name: str, weights: tuple[str, ...], batch_size: int, profile: QueryProfile) -> PlannedQuery:
    costs = {size: _cost(profile, size) for size in range(1, batch_size + 1)}
    return PlannedQuery(
        name=name,
        weights=weights,
        batch_size=batch_size,
        run_ms={size: cost.run_ms for size, cost in costs.items()},
        workspace_bytes={size: cost.workspace_bytes for size, cost in costs.items()},
    )

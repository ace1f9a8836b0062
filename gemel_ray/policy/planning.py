"""The plan of one node: a release and a device's profile, turned into what the scheduler is to run."""

from __future__ import annotations

import logging

from gemel_ray.policy.batching import Demand, choose_batch_sizes
from gemel_ray.policy.duty_cycle import Round, TurnCost, bundle
from gemel_ray.policy.order import choose_order
from gemel_ray.spec.errors import OverBudgetError, ServingError, nearest
from gemel_ray.spec.plan import EdgePlan, PlannedQuery
from gemel_ray.spec.profile import DeviceProfile, QueryProfile
from gemel_ray.spec.release import Manifest

log = logging.getLogger(__name__)


def plan_node(
    manifest: Manifest, profile: DeviceProfile, *, budget_bytes: int, max_batch: int = 8, overlap: bool = True
) -> EdgePlan:
    """Order and batch sizes for all of a release's queries on one device.

    Only measured batch sizes up to `max_batch` are chosen; between measured ones the costs of the next larger count.
    A profile that starts above 1 counts as if it started at 1. Raises OverBudgetError when one query alone does not
    fit, ServingError when the profile lacks a query.
    """
    weights = {name: manifest.blobs_of(name) for name in manifest.queries}
    weight_bytes = {blob: manifest.blobs[blob].tensor_bytes for needed in weights.values() for blob in needed}
    load_ms = {blob: profile.load_ms(count_bytes) for blob, count_bytes in weight_bytes.items()}
    costs = {
        name: _fitting_costs(
            name,
            _profile_of(name, profile),
            sum(weight_bytes[blob] for blob in weights[name]),
            budget_bytes=budget_bytes,
            max_batch=max_batch,
        )
        for name in manifest.queries
    }
    order = choose_order(
        weights,
        weight_bytes,
        budget_bytes=budget_bytes,
        workspace_bytes={name: by_size[1].workspace_bytes for name, by_size in costs.items()},
    )
    chosen = choose_batch_sizes(
        Round(order, bundle(weights, weight_bytes, load_ms)),
        {name: _demand(manifest, name, by_size) for name, by_size in costs.items()},
        budget_bytes=budget_bytes,
        overlap=overlap,
    )
    log.info(
        "plan for release %d: %d queries in %d bytes, duty cycle %.1f ms, worst goodput %.3f",
        manifest.release, len(order), budget_bytes, chosen.cycle_ms, chosen.score[0],
    )  # fmt: skip
    planned = tuple(_planned(name, weights[name], chosen.sizes[name], _profile_of(name, profile)) for name in order)
    return EdgePlan(planned, weight_bytes, load_ms, budget_bytes, overlap)


def _profile_of(name: str, profile: DeviceProfile) -> QueryProfile:
    if name not in profile.queries:
        raise ServingError(
            f"the profile of {profile.device} lacks query {name!r} ({nearest(name, profile.queries)}); "
            "profile this release on this device"
        )
    return profile.queries[name]


def _demand(manifest: Manifest, name: str, costs: dict[int, TurnCost]) -> Demand:
    query = manifest.queries[name].query
    return Demand(query.fps, query.slo_ms, costs)


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

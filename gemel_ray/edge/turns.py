"""What the scheduler knows of a turn, and what a plan must hold before it is followed."""

from __future__ import annotations

from dataclasses import dataclass

from gemel_ray.policy.eviction import EVICTIONS
from gemel_ray.spec.actions import Frame, Infer
from gemel_ray.spec.errors import OverBudgetError, ServingError, nearest
from gemel_ray.spec.plan import EdgePlan, PlannedQuery


@dataclass(frozen=True, slots=True)
class Turn:
    """The inference under way."""

    query: PlannedQuery
    frames: tuple[Frame, ...]
    infer: Infer
    # When it is predicted to end.
    until_ms: float
    # Whether it was started before all its weights had arrived.
    is_early: bool = False


def check_plan(plan: EdgePlan) -> None:
    """Raise OverBudgetError for a query that does not fit at its batch size, ServingError for a plan with gaps or an
    eviction policy that is not there."""
    if plan.eviction not in EVICTIONS:
        raise ServingError(f"no eviction policy {plan.eviction!r}; {nearest(plan.eviction, EVICTIONS)}")
    for query in plan.queries:
        if lost := [
            weight for weight in query.weights if not {weight} <= plan.weight_bytes.keys() & plan.load_ms.keys()
        ]:
            raise ServingError(f"the plan lacks bytes or load time of {lost[0]}, which query {query.name!r} needs")
        weights_bytes = sum(plan.weight_bytes[weight] for weight in {*query.weights})
        needed_bytes = weights_bytes + max(query.workspace_bytes[size] for size in range(1, query.batch_size + 1))
        if needed_bytes > plan.budget_bytes:
            raise OverBudgetError(
                f"query {query.name!r} needs {needed_bytes} bytes at batch size {query.batch_size}, the budget is "
                f"{plan.budget_bytes}; lower its batch size or place it on another node"
            )

"""One policy on one budget, simulated from plan to metrics: plain values in and out, so that any process can do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemel_ray.edge.chrome_trace import ChromeEvent, chrome_trace
from gemel_ray.edge.metrics import standing_answers
from gemel_ray.edge.simulation import Simulation, cameras_of, choose_plan, measure, play
from gemel_ray.edge.traffic import periodic
from gemel_ray.policy.baselines import candidate_plans, find_policy
from gemel_ray.policy.sharing import Models
from gemel_ray.spec.errors import OverBudgetError
from gemel_ray.spec.profile import DeviceProfile


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be simulated."""

    policy: str
    budget_bytes: int
    duration_ms: float
    wants_standing: bool = False
    wants_trace: bool = False


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it; or why nothing did, where not even one model fits the budget."""

    found: Simulation | None = None
    problem: str = ""
    # See metrics.standing_answers.
    standing: Mapping[str, Sequence[int | None]] | None = None
    trace: Sequence[ChromeEvent] | None = None


def play_asked(models: Models, profile: DeviceProfile, asked: Asked) -> Played:
    """Plan, choose, simulate, measure. Raises ServingError when the profile lacks a query."""
    cameras = cameras_of(models)
    try:
        plans = candidate_plans(find_policy(asked.policy), models, profile, budget_bytes=asked.budget_bytes)
    except OverBudgetError as error:
        return Played(problem=str(error))
    chosen = choose_plan(plans, cameras)
    trace = play(chosen, periodic(cameras, asked.duration_ms))
    return Played(
        measure(asked.policy, chosen.plan, trace),
        standing=standing_answers(trace.verdicts) if asked.wants_standing else None,
        trace=chrome_trace(trace) if asked.wants_trace else None,
    )

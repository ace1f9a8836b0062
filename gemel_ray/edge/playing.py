"""One policy on one budget, simulated from plan to metrics: plain values in and out, so that any process can do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemel_ray.edge.choosing import choose_plan, expected_traffic
from gemel_ray.edge.chrome_trace import ChromeEvent, chrome_trace
from gemel_ray.edge.metrics import standing_answers
from gemel_ray.edge.simulation import Simulation, cameras_of, measure, play
from gemel_ray.edge.trace import Trace
from gemel_ray.edge.traffic import Camera, periodic, scattered
from gemel_ray.policy.baselines import candidate_plans, find_policy
from gemel_ray.policy.sharing import Models
from gemel_ray.spec.errors import OverBudgetError
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.profile import DeviceProfile

# Nobody knows beforehand when cameras' frames come: some other phases, not those that a plan was chosen on, are played
# for this part of the time. Four cameras under one plan: from 50 to 62 % of frames in time, by phases alone.
_OTHER_PHASES = range(100, 103)
_PART = 1 / 3


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
    # Mean goodput where the cameras' frames come at other moments.
    goodput_at_other_phases: tuple[float, ...] = ()
    # See metrics.standing_answers.
    standing: Mapping[str, Sequence[int | None]] | None = None
    trace: Sequence[ChromeEvent] | None = None


def simulate(
    models: Models,
    profile: DeviceProfile,
    policy: str,
    *,
    budget_bytes: int,
    duration_ms: float,
    cameras: Sequence[Camera] | None = None,
) -> Simulation:
    """Run a policy of policy.baselines on a simulated device whose costs are the profile's.

    `cameras` are those of `cameras_of` unless given. Raises InputError for an unknown policy, OverBudgetError when one
    query alone does not fit, ServingError when the profile lacks a query.
    """
    cameras = cameras_of(models) if cameras is None else cameras
    plan, trace = _played(models, profile, policy, cameras, budget_bytes, duration_ms)
    return measure(policy, plan, trace)


def play_asked(models: Models, profile: DeviceProfile, asked: Asked) -> Played:
    """Plan, choose, simulate, measure. Raises ServingError when the profile lacks a query."""
    cameras = cameras_of(models)
    try:
        plan, trace = _played(models, profile, asked.policy, cameras, asked.budget_bytes, asked.duration_ms)
    except OverBudgetError as error:
        return Played(problem=str(error))
    return Played(
        measure(asked.policy, plan, trace),
        goodput_at_other_phases=tuple(_goodput_at(plan, cameras, draw, asked) for draw in _OTHER_PHASES),
        standing=standing_answers(trace.verdicts) if asked.wants_standing else None,
        trace=chrome_trace(trace) if asked.wants_trace else None,
    )


def _goodput_at(plan: EdgePlan, cameras: Sequence[Camera], draw: int, asked: Asked) -> float:
    frames = periodic(scattered(cameras, draw), asked.duration_ms * _PART)
    return measure(asked.policy, plan, play(plan, frames)).mean_goodput_fraction


def _played(
    models: Models,
    profile: DeviceProfile,
    policy: str,
    cameras: Sequence[Camera],
    budget_bytes: int,
    duration_ms: float,
) -> tuple[EdgePlan, Trace]:
    plans = candidate_plans(find_policy(policy), models, profile, budget_bytes=budget_bytes)
    plan = choose_plan(plans, expected_traffic(cameras))
    return plan, play(plan, periodic(cameras, duration_ms))

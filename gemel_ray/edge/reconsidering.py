"""Another plan for queries that lose frames: held against the plan being followed, on the frames that came last.

A plan made beforehand knows frame rates only. What is lost in too little memory depends as much on when frames come,
and that stays as it is for minutes, since cameras keep their rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemel_ray.edge.choosing import choose_plan
from gemel_ray.edge.recent import RecentTraffic
from gemel_ray.edge.simulation import measure, play
from gemel_ray.policy.baselines import Candidate
from gemel_ray.spec.plan import EdgePlan

# Who answers so much of what comes has nothing to win.
_ENOUGH_FRACTION = 0.98
# A simulation that is further off on the plan being followed says nothing about others: the device is not what it was
# when it was profiled. Medians of real cameras on our processors: .01 to .05 off right after a profile, up to .14 when
# the machine had become faster or slower since.
_TRUSTED_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class Reconsidered:
    """What came of it. Goodput is the mean over queries: as measured, as simulated, as simulated with the new plan."""

    # None where the plan being followed is kept.
    plan: EdgePlan | None
    measured_fraction: float
    simulated_fraction: float
    expected_fraction: float

    def __str__(self) -> str:
        """For the log."""
        told = f"goodput of the last seconds {self.measured_fraction:.3f}, simulated {self.simulated_fraction:.3f}"
        return f"{told}; {'kept' if self.plan is None else f'another plan: {self.expected_fraction:.3f}'}"


def loses_frames(recent: RecentTraffic) -> bool:
    """Whether another plan could win anything."""
    return recent.goodput_fraction < _ENOUGH_FRACTION


def reconsider(current: EdgePlan, others: Sequence[EdgePlan], recent: RecentTraffic) -> Reconsidered:
    """The plan that would have answered most of the recent frames; the current one unless another is clearly better,
    or if the simulation of it is not what was measured."""
    simulated = _simulated(current, recent)
    if abs(simulated - recent.goodput_fraction) > _TRUSTED_FRACTION:
        return Reconsidered(None, recent.goodput_fraction, simulated, simulated)
    candidates = [Candidate(current, is_baseline=True), *(Candidate(plan) for plan in others if plan != current)]
    chosen = choose_plan(candidates, [recent.frames])
    if chosen is current:
        return Reconsidered(None, recent.goodput_fraction, simulated, simulated)
    return Reconsidered(chosen, recent.goodput_fraction, simulated, _simulated(chosen, recent))


def _simulated(plan: EdgePlan, recent: RecentTraffic) -> float:
    return measure("", plan, play(plan, recent.frames)).mean_goodput_fraction

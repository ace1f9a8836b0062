"""The choice between several plans for the same queries: each is tried on a simulated device, on the frames to come.

Before anything is known of when frames come, they are those of evenly spread and of scattered cameras; later, those
that came last.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from gemel_ray.edge.simulation import measure, play
from gemel_ray.edge.traffic import Camera, before, periodic, scattered
from gemel_ray.policy.baselines import Candidate
from gemel_ray.spec.actions import Frame
from gemel_ray.spec.plan import EdgePlan

# How much traffic a plan is tried on at most. Some turns of fifty queries.
TRIED_MS = 6_000.0
# Every plan is tried on so many milliseconds of traffic first. Those that far behind the best in mean goodput at most,
# and no more than so many, are tried on all of it.
_FIRST_MS = 1_500.0
_WITHIN_FRACTION = 0.05
_MOST_TRIED = 3
# With few cameras it decides much when their frames come: they are tried at several times, until there have been so
# many. On 17 generated workloads where a plan chosen at one time lost to time/space sharing at another, 12 bring it
# from .965 to .986 of that (geometric mean); 24 and 48 do no better.
_CAMERAS_TRIED = 12
# By so much mean goodput another plan has to be better than a baseline's. Nothing is lost by it on 72 generated
# workloads (1.162 instead of 1.163 of time/space sharing's goodput, geometric mean), and of 17 on which a plan chosen
# at one time lost to it at another, three more do not.
CLEARLY_FRACTION = 0.03
# Every frame of every query in time.
_PERFECT = (1.0, 1.0)

Traffic = Sequence[Frame]
# Mean and worst goodput.
Score = tuple[float, float]
Scored = tuple[Score, Candidate]


def choose_plan(plans: Sequence[Candidate], traffic: Sequence[Traffic]) -> EdgePlan:
    """The plan of most mean goodput, then of most goodput for the query that fares worst, in short simulations.

    `traffic` is what each plan is tried on, the first TRIED_MS milliseconds of each. The first of equals, and a
    baseline where no other is clearly better: the one that would be chosen among baselines alone. Predictions of round
    robins tell neither what queries with nothing pending spare nor how loads and computations interleave, so what looks
    best on paper is tried: all plans on a little traffic, the best on more (successive halving: Jamieson and Talwalkar,
    AISTATS 2016). What answers every frame of all traffic is taken at once.
    """
    plans = sorted(plans, key=lambda candidate: not candidate.is_baseline)
    if len(plans) == 1:
        return plans[0].plan
    traffic = [before(TRIED_MS, frames) for frames in traffic]
    beginning = [before(_FIRST_MS, frames) for frames in traffic]
    begun: list[Scored] = []
    for candidate in plans:
        score = _score(candidate.plan, beginning)
        # A beginning without a loss says nothing yet about those to come.
        if score == _PERFECT and _score(candidate.plan, traffic) == _PERFECT:
            return candidate.plan
        begun.append((score, candidate))
    return _best([(_score(candidate.plan, traffic), candidate) for candidate in _worth_trying(begun)])


def _worth_trying(scored: Sequence[Scored]) -> list[Candidate]:
    """Of the baselines those not far behind the best of them, then of all plans."""
    ranked = _ranked(scored)
    found: list[Candidate] = []
    for among in ([each for each in ranked if each[1].is_baseline], ranked):
        near = [each for score, each in among[:_MOST_TRIED] if score[0] >= among[0][0][0] - _WITHIN_FRACTION]
        found += [each for each in near if each not in found]
    return found


def _best(scored: Sequence[Scored]) -> EdgePlan:
    """The best, or the best baseline where that is not clearly better."""
    ranked = _ranked(scored)
    (mean, _), best = ranked[0]
    for score, candidate in ranked:
        if candidate.is_baseline and score[0] >= mean - CLEARLY_FRACTION:
            return candidate.plan
    return best.plan


def _ranked(scored: Sequence[Scored]) -> list[Scored]:
    """Best first; of equals, those that came first."""
    return sorted(scored, key=lambda each: each[0], reverse=True)


def expected_traffic(cameras: Sequence[Camera]) -> list[Traffic]:
    """What may come from cameras of which only the frame rates are known: as they are, and scattered."""
    more = _CAMERAS_TRIED // max(len(cameras), 1) - 1
    draws = [cameras, *(scattered(cameras, draw) for draw in range(more))]
    return [periodic(drawn, TRIED_MS) for drawn in draws]


def _score(plan: EdgePlan, traffic: Sequence[Traffic]) -> Score:
    """Mean and worst goodput, each a mean over all traffic."""
    played = [measure("", plan, play(plan, frames)) for frames in traffic]
    mean = statistics.fmean(found.mean_goodput_fraction for found in played)
    return mean, statistics.fmean(found.worst_goodput_fraction for found in played)

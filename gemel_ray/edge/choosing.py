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
# Rounds of a choice between plans: milliseconds of traffic, then how far behind the best in mean goodput, and how many,
# go on to the next round.
_ROUNDS = ((1_500.0, 0.05, 3), (TRIED_MS, 0.0, 1))
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


def choose_plan(plans: Sequence[Candidate], traffic: Sequence[Traffic]) -> EdgePlan:
    """The plan of most mean goodput, then of most goodput for the query that fares worst, in short simulations.

    `traffic` is what each plan is tried on, of TRIED_MS milliseconds each. The first of equals, and a baseline where
    no other is clearly better: the one that would be chosen among baselines alone. Predictions of round robins tell
    neither what queries with nothing pending spare nor how loads and computations interleave, so what looks best on
    paper is tried. Longer and longer traffic, fewer and fewer plans (successive halving: Jamieson and Talwalkar,
    AISTATS 2016), until one is left or answers every frame.
    """
    plans = sorted(plans, key=lambda candidate: not candidate.is_baseline)
    for length_ms, within, most in _ROUNDS:
        if len(plans) == 1:
            break
        scores = _scores(plans, [before(length_ms, frames) for frames in traffic])
        ranked = sorted(zip(scores, plans, strict=False), key=lambda scored: scored[0], reverse=True)
        best, candidate = ranked[0]
        if best == _PERFECT:
            return candidate.plan
        baselines = [scored for scored in ranked if scored[1].is_baseline]
        if most == 1 and baselines and baselines[0][0][0] >= best[0] - CLEARLY_FRACTION:
            return baselines[0][1].plan
        kept = [*_kept(baselines, within, most), *_kept(ranked, within, most)]
        plans = [each for place, each in enumerate(kept) if each not in kept[:place]]
    return plans[-1].plan


def expected_traffic(cameras: Sequence[Camera]) -> list[Traffic]:
    """What may come from cameras of which only the frame rates are known: as they are, and scattered."""
    more = _CAMERAS_TRIED // max(len(cameras), 1) - 1
    draws = [cameras, *(scattered(cameras, draw) for draw in range(more))]
    return [periodic(drawn, TRIED_MS) for drawn in draws]


def _kept(ranked: Sequence[tuple[Score, Candidate]], within: float, most: int) -> list[Candidate]:
    return [each for score, each in ranked[:most] if score[0] >= ranked[0][0][0] - within]


def _scores(plans: Sequence[Candidate], traffic: Sequence[Traffic]) -> list[Score]:
    """Mean and worst goodput of the plans, each a mean over all traffic, up to the first that answers every frame."""
    scores: list[Score] = []
    for candidate in plans:
        played = [measure("", candidate.plan, play(candidate.plan, frames)) for frames in traffic]
        mean = statistics.fmean(found.mean_goodput_fraction for found in played)
        scores.append((mean, statistics.fmean(found.worst_goodput_fraction for found in played)))
        if scores[-1] == _PERFECT:
            break
    return scores

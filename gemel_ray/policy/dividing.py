"""Dividing: what failed is split by the queries that objected and in halves, until its parts pass or cannot be split.

Sifting divides without training: two detectors from one ancestor, at 99 %, can share as they are neither all 37 layers
nor the heavier or lighter half of them, but the nine heaviest: 81 % of the bytes, in 16 seconds (our measurement).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gemel_ray.policy.additions import Addition, fingerprint, memory_forward, names, pieces
from gemel_ray.policy.judging import failure_of, is_hopeless
from gemel_ray.policy.search_state import Failure, SearchState, Waiting
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import Candidate, Outcome

# A whole that stayed so far below its targets lets its parts be worth 1/e of what they save. Our choice: halves of two
# ten-class strangers' shareable layers miss by .2, of all repeats within them by .4, a single pair by nothing.
_FORGIVEN = 0.1
# Parts of less than this share of what relatives could save are left to training.
_LEAST_SIFTED = 0.03


def divide(state: SearchState) -> tuple[tuple[Addition, ...], tuple[Waiting, ...], Addition]:
    """What to try next, what waits, and what is rejected.

    The most promising additions that have not failed in the very same form; those are split until they have not.
    """
    rejected, least = state.rejected, _least_gain(state)
    waiting = list(state.waiting)
    fresh: dict[str, Waiting] = {}
    while waiting:
        each = waiting.pop(0)
        if state.gain(each.addition) <= least:
            continue
        leads_to = fingerprint(state.accepted.joined(each.addition))
        if failure := state.failed.get(leads_to):
            smaller = _parts(state, each.addition, failure)
            waiting += smaller
            rejected = rejected if smaller else (*rejected, *each.addition)
        else:
            fresh.setdefault(leads_to, each)
    found = sorted(fresh.values(), key=lambda each: (-_promise(state, each), names(each.addition)))
    now, later = found[: state.settings.side_by_side], found[state.settings.side_by_side :]
    return tuple(each.addition for each in now), tuple(later), memory_forward(rejected)


def after_division(
    state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None
) -> tuple[list[Waiting], Addition]:
    """What waits and what is rejected after a dividing round.

    Those that passed beside the winner are tried again together, on top of it. Nothing is rejected untrained.
    """
    waiting: list[Waiting] = []
    rejected, passed = state.rejected, MergeConfiguration()
    for candidate, addition in zip(state.round, state.adds, strict=True):
        outcome = outcomes[candidate.number]
        if candidate is won:
            continue
        if outcome.passed:
            passed = passed.joined(addition)
        else:
            smaller = _parts(state, addition, failure_of(outcome))
            waiting += smaller
            rejected = (*rejected, *addition) if state.trains and not smaller else rejected
    return [Waiting(addition=passed.shared), *waiting], rejected


def _parts(state: SearchState, addition: Addition, failure: Failure) -> list[Waiting]:
    """What to try instead of an addition that failed. Corrections have to be trained."""
    delta_rank = state.settings.delta_rank if state.trains else 0
    smaller = pieces(
        addition, failure.objectors, delta_rank=delta_rank, hopeless=state.trains and _is_far(addition, failure)
    )
    return [Waiting(addition=piece, shortfall=failure.shortfall or 0.0) for piece in smaller]


def _is_far(addition: Addition, failure: Failure) -> bool:
    """Whether the heavier half of what failed would fail as well.

    Where the whole was hopeless, it did in all of 19 such pairs of our records (ten-class strangers, detectors, each
    target apart), and cost as many steps as its two halves. In slices it passed in 6 of 11.
    """
    return is_hopeless(failure) and not any(layer.extents for layer in addition)


def _promise(state: SearchState, waiting: Waiting) -> float:
    """The bytes an addition saves, and less of them the further from its targets the whole stayed that it is part of:
    a small part of what nearly passed is worth more than a large one of what was hopeless."""
    return state.gain(waiting.addition) * math.exp(-waiting.shortfall / _FORGIVEN)


def _least_gain(state: SearchState) -> float:
    return 0 if state.trains else _LEAST_SIFTED * MergeConfiguration(shared=state.relatives).saved_bytes

"""The merge search as a state machine over values: propose a round of candidates, take their outcomes, go on.

A round is proposed whole and judged whole, in the order of its candidates, so what is accepted depends on the seed
alone and never on how many trials run at once or which ends first.

Probe: share everything at once without training, and everything without the hardest few per cent of the bytes (the
lightest, earliest layers hold most of the difficulty: our measurement). Leap: the same two with joint retraining, on
top of what the probe won. Divide: where that falls short, split what is left in halves, memory-forward, and try each
half on top of what was accepted; a half that fails is split again, down to single groups, the lightest included.
Every segment shrinks or is settled, so the search terminates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from gemel_ray.spec.layers import LayerGroup
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.strict import Strict
from gemel_ray.spec.trials import Candidate, Outcome

# The share of bytes that a cautious leap leaves out, taken from the lightest groups.
_HARDEST_FRACTION = 0.03
# Segments tried side by side in one dividing round; fixed, so that results do not depend on the machine's size.
_SEGMENTS_PER_ROUND = 2

Segment = tuple[int, ...]


class SearchBudget(Strict):
    """When to stop at the latest."""

    max_trials: int = 40
    max_steps: int = 150


class SearchState(Strict):
    """All a search knows; plain values, so that it can be written down after every round and taken up again."""

    groups: tuple[SharedLayer, ...]
    budget: SearchBudget
    seed: int
    # The release whose weights the next candidates start from.
    release: int
    phase: Literal["probe", "leap", "divide"] = "probe"
    accepted: Segment = ()
    # Segments still to be tried, heaviest first.
    waiting: tuple[Segment, ...] = ()
    # Groups that failed on their own.
    rejected: Segment = ()
    # The round under way, and the segments its candidates add.
    round: tuple[Candidate, ...] = ()
    adds: tuple[Segment, ...] = ()
    trials: int = 0


def begin(groups: Sequence[LayerGroup], *, release: int, budget: SearchBudget, seed: int = 0) -> SearchState:
    """A search over groups in memory-forward order, starting from a release of the originals."""
    shared = MergeConfiguration.of(groups).shared
    return _propose(SearchState(groups=shared, budget=budget, seed=seed, release=release))


def is_finished(state: SearchState) -> bool:
    """Nothing is left to try, or the budget is spent."""
    return not state.round


def winner(state: SearchState, outcomes: Mapping[int, Outcome]) -> Candidate | None:
    """The round's candidate to accept: most bytes saved among those that passed; the first of equals."""
    passed = [candidate for candidate in state.round if outcomes[candidate.number].passed]
    return max(passed, key=lambda candidate: candidate.configuration.saved_bytes, default=None)


def advance(state: SearchState, outcomes: Mapping[int, Outcome], *, release: int) -> SearchState:
    """The state after a round whose every candidate has its outcome.

    `release` is the release that publishes the round's winner, or the one before where nothing won.
    """
    won = winner(state, outcomes)
    segments = dict(zip((candidate.number for candidate in state.round), state.adds, strict=True))
    accepted = _merged(state.accepted, segments[won.number]) if won else state.accepted
    settled = state.model_copy(update={"accepted": accepted, "release": release, "round": (), "adds": ()})
    if state.phase == "probe":
        return _propose(settled.model_copy(update={"phase": "leap"}))
    if state.phase == "leap":
        rest = _rest(settled)
        waiting = (rest,) if won and rest else _halves(rest)
        return _propose(settled.model_copy(update={"phase": "divide", "waiting": waiting}))
    waiting, rejected = _after_division(state, outcomes, won)
    return _propose(settled.model_copy(update={"waiting": waiting, "rejected": rejected}))


def _rest(state: SearchState) -> Segment:
    """Groups neither accepted nor rejected."""
    return tuple(p for p in range(len(state.groups)) if p not in state.accepted and p not in state.rejected)


def _after_division(
    state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None
) -> tuple[tuple[Segment, ...], Segment]:
    """What waits and what is rejected after a dividing round."""
    waiting, rejected = list(state.waiting), state.rejected
    for candidate, segment in zip(state.round, state.adds, strict=True):
        if candidate is won:
            continue
        if outcomes[candidate.number].passed:
            waiting.append(segment)  # passed beside the winner: try it again on top of it
        elif len(segment) == 1:
            rejected = _merged(rejected, segment)
        else:
            waiting.extend(_halves(segment))
    waiting.sort(key=lambda segment: (-_saved(state.groups, segment), segment))
    return tuple(waiting), rejected


def _propose(state: SearchState) -> SearchState:
    """Fill the next round, as far as the budget goes."""
    divides = state.phase == "divide"
    wanted = state.waiting[:_SEGMENTS_PER_ROUND] if divides else _leaps(state)
    wanted = wanted[: max(state.budget.max_trials - state.trials, 0)]
    candidates = (_candidate(state, state.trials + place, segment) for place, segment in enumerate(wanted))
    return state.model_copy(
        update={
            "round": tuple(candidates),
            "adds": wanted,
            "waiting": state.waiting[len(wanted) :] if divides else (),
            "trials": state.trials + len(wanted),
        }
    )


def _leaps(state: SearchState) -> tuple[Segment, ...]:
    """Everything that is left, and everything but the hardest."""
    rest = _rest(state)
    cautious = tuple(place for place in rest if place in _without_hardest(state.groups))
    return tuple(dict.fromkeys(segment for segment in (rest, cautious) if segment))


def _candidate(state: SearchState, number: int, segment: Segment) -> Candidate:
    places = _merged(state.accepted, segment)
    what = f"group {segment[0]}" if len(segment) == 1 else f"{len(segment)} groups from {segment[0]}"
    return Candidate(
        number=number,
        label=f"{state.phase} {what}",
        configuration=MergeConfiguration(shared=tuple(state.groups[place] for place in places)),
        max_steps=0 if state.phase == "probe" else state.budget.max_steps,
        start_release=state.release,
        seed=state.seed + number,
    )


def _without_hardest(groups: Sequence[SharedLayer]) -> Segment:
    """All groups but the lightest ones that together hold the hardest fraction of the saving."""
    every = tuple(range(len(groups)))
    allowance = _HARDEST_FRACTION * _saved(groups, every)
    left_out = 0
    for place in reversed(every):
        left_out += _saved(groups, (place,))
        if left_out > allowance:
            return every[: place + 1]
    return ()


def _saved(groups: Sequence[SharedLayer], segment: Iterable[int]) -> int:
    return sum(groups[place].layer_bytes * (len(groups[place].members) - 1) for place in segment)


def _halves(segment: Segment) -> tuple[Segment, ...]:
    if len(segment) < 2:
        return (segment,) if segment else ()
    middle = len(segment) // 2
    return segment[:middle], segment[middle:]


def _merged(one: Segment, other: Segment) -> Segment:
    return tuple(sorted({*one, *other}))

"""The merge search as a state machine over values: propose a round of candidates, take their outcomes, go on.

A round is proposed whole and judged whole, in the order of its candidates, so what is accepted depends on the seed
alone and never on how many trials run at once or which ends first.

Probe: share without training, first among layers whose weights resemble each other (copies, and models fine-tuned
from one ancestor), then everything; each also without the hardest few per cent of the bytes (the lightest, earliest
layers hold most of the difficulty: our measurement). Kin: the same relatives with joint retraining, which they need
little of. Leap: everything at once with joint retraining, on top of what was won so far: across and within models,
then across models, each with and without the hardest. Widen: once repeats within models share, smaller layers as slices
of larger ones. Persist: wholes that failed close to their targets once more, with several times the steps. Divide: what
is left, split by the queries that objected and in halves, memory-forward, down to two members of one group, the
lightest included. Every failed addition is replaced by smaller ones or rejected, so the search terminates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from gemel_ray.policy.additions import Addition, fingerprint, memory_forward, pieces, without_hardest
from gemel_ray.policy.budget import decisive, decisive_steps, steps_each
from gemel_ray.policy.candidates import candidate_of
from gemel_ray.policy.search_state import Failure, Phase, SearchSettings, SearchState, Waiting
from gemel_ray.spec.layers import LayerGroup
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import SUPERSEDED, Candidate, Outcome

_NEXT: Mapping[Phase, Phase] = {"probe": "kin", "kin": "leap", "leap": "widen", "widen": "persist", "persist": "divide"}

# Where relatives make up less of the saving than this, sharing everything without training is known to fail.
_KIN_FRACTION = 0.9

# A whole that stayed so far below its targets lets its parts be worth 1/e of what they save. Our choice: halves of two
# ten-class strangers' shareable layers miss by .2, of all repeats within them by .4, a single pair by nothing.
_FORGIVEN = 0.1
# So much better a trial's models agree on frames they learned from than on others when they know them by heart (.2 to
# .3 with 1,500 images of ten classes, .03 at most on five fixed cameras).
_OVERFIT = 0.1
# Slices are worth trying once all but so much of what repeats save is won: where those failed, slices do (ten-class
# strangers, small trials of drawn streets).
_LEFT_FRACTION = 0.05
# As close to its target a worst query may come within three times the steps (from .975 to .986: five real cameras).
_CLOSE = 0.03


def begin(
    groups: Sequence[LayerGroup],
    *,
    release: int,
    settings: SearchSettings,
    accepted: MergeConfiguration | None = None,
    seed: int = 0,
    relatives: Sequence[LayerGroup] = (),
    beyond: Sequence[LayerGroup] = (),
    widest: Sequence[LayerGroup] = (),
    name: str = "",
) -> SearchState:
    """A search over groups, starting from a release of the originals, or from one that shares what is `accepted`."""
    across, alike, wider, sliced = (
        MergeConfiguration.of(found).shared for found in (groups, relatives, beyond, widest)
    )
    state = SearchState(
        name=name, groups=across, relatives=alike, beyond=wider, widest=sliced, settings=settings, seed=seed,
        release=release, accepted=accepted or MergeConfiguration(),
    )  # fmt: skip
    return _propose(state)


def is_finished(state: SearchState) -> bool:
    """Nothing is left to try, or the budget is spent."""
    return not state.round


def winner(state: SearchState, outcomes: Mapping[int, Outcome]) -> Candidate | None:
    """The round's candidate to accept: most bytes saved among those that passed; the first of equals."""
    passed = [candidate for candidate in state.round if outcomes[candidate.number].passed]
    return max(passed, key=lambda candidate: candidate.configuration.saved_bytes, default=None)


def is_superseded(state: SearchState, candidate: Candidate, outcomes: Mapping[int, Outcome]) -> bool:
    """Whether a candidate of the round can change nothing any more: one that saves as much has passed already.

    In a dividing round every outcome counts, since several may be accepted one after the other.
    """
    saved = [c.configuration.saved_bytes for c in state.round if (o := outcomes.get(c.number)) and o.passed]
    return state.phase != "divide" and bool(saved) and candidate.configuration.saved_bytes <= max(saved)


def advance(state: SearchState, outcomes: Mapping[int, Outcome], *, release: int) -> SearchState:
    """The state after a round whose every candidate has its outcome.

    `release` is the release that publishes the round's winner, or the one before where nothing won.
    """
    won = winner(state, outcomes)
    settled = state.model_copy(
        update={
            "accepted": won.configuration if won else state.accepted,
            "failed": state.failed | _failed(state, outcomes),
            "overfits": state.overfits or _has_overfit(state, outcomes, won),
            "close": (*state.close, *_close(state, outcomes, won)),
            "release": release,
            "steps": state.steps + decisive_steps(state.round, outcomes, won=won),
            "round": (),
            "adds": (),
        }
    )
    if state.phase != "divide":
        return _propose(_moved_on(settled))
    more, rejected = _after_division(state, outcomes, won)
    return _propose(settled.model_copy(update={"waiting": (*state.waiting, *more), "rejected": rejected}))


def _moved_on(state: SearchState) -> SearchState:
    """The next phase; dividing begins with all that is left."""
    phase = _NEXT[state.phase]
    sorts = (state.groups, state.beyond, _widest(state)) if phase == "divide" else ()
    left = [_rest(state, sort) for sort in sorts]
    return state.model_copy(update={"phase": phase, "waiting": tuple(Waiting(addition=rest) for rest in left)})


def _failed(state: SearchState, outcomes: Mapping[int, Outcome]) -> dict[str, Failure]:
    return {
        fingerprint(candidate.configuration): _failure(outcomes[candidate.number])
        for candidate in state.round
        if candidate.max_steps > 0 and _has_failed(outcomes[candidate.number])
    }


def _failure(outcome: Outcome) -> Failure:
    return Failure(objectors=outcome.objectors, shortfall=outcome.shortfall)


def _close(state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None) -> list[Addition]:
    """Additions of a leap that would have saved more than its winner, and failed close to their targets."""
    shortfalls = {each.number: outcomes[each.number].shortfall for each in decisive(state.round, won=won)}
    return [
        addition
        for candidate, addition in zip(state.round, state.adds, strict=True)
        if state.phase in ("kin", "leap", "widen")
        and (short := shortfalls.get(candidate.number)) is not None
        and short <= _CLOSE
    ]


def _has_overfit(state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None) -> bool:
    return any((outcomes[each.number].overfit or 0.0) >= _OVERFIT for each in decisive(state.round, won=won))


def _has_failed(outcome: Outcome) -> bool:
    return not outcome.passed and outcome.reason != SUPERSEDED


def _rest(state: SearchState, wanted: Addition) -> Addition:
    """The layers of `wanted` that still save something on top of what is accepted."""
    return tuple(layer for layer in wanted if _gain(state, (layer,)) > 0)


def _gain(state: SearchState, addition: Addition) -> int:
    return state.accepted.joined(addition).saved_bytes - state.accepted.saved_bytes


def _after_division(
    state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None
) -> tuple[list[Waiting], Addition]:
    """What waits and what is rejected after a dividing round.

    Those that passed beside the winner are tried again together, on top of it.
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
            smaller = _parts(state, addition, _failure(outcome))
            waiting += smaller
            rejected = rejected if smaller else (*rejected, *addition)
    return [Waiting(addition=passed.shared), *waiting], rejected


def _parts(state: SearchState, addition: Addition, failure: Failure) -> list[Waiting]:
    """What to try instead of an addition that failed."""
    smaller = pieces(addition, failure.objectors, delta_rank=state.settings.delta_rank)
    return [Waiting(addition=piece, shortfall=failure.shortfall or 0.0) for piece in smaller]


def _propose(state: SearchState) -> SearchState:
    """Fill the next round, as far as the budget goes; phases that have nothing to try are passed over."""
    while state.phase != "divide" and not (wanted := _wholes(state)):
        state = _moved_on(state)
    waiting, rejected = state.waiting, state.rejected
    if state.phase == "divide":
        wanted, waiting, rejected = _divide(state)
    steps = 0
    if state.phase != "probe":
        wanted = wanted[: max(state.settings.max_trials - state.trials, 0)]
        steps = _steps_each(state, len(wanted))
        wanted = wanted if steps else ()
    return state.model_copy(
        update={
            "round": tuple(candidate_of(state, place, addition, steps) for place, addition in enumerate(wanted)),
            "adds": wanted,
            "waiting": waiting,
            "rejected": rejected,
            "proposed": state.proposed + len(wanted),
            "trials": state.trials + (0 if state.phase == "probe" else len(wanted)),
        }
    )


def _steps_each(state: SearchState, candidates: int) -> int:
    settings = state.settings
    return steps_each(
        settings.max_steps * (settings.patience if state.phase == "persist" else 1),
        most_steps=settings.most_steps,
        spent_steps=state.steps,
        candidates=candidates,
    )


def _wholes(state: SearchState) -> tuple[Addition, ...]:
    """What a probe, kin or leap round adds: everything of a sort that is left, with and without the hardest."""
    sorts = {
        "probe": (state.groups, state.relatives),
        "kin": (state.relatives,),
        "leap": (state.beyond, state.groups),
        "widen": (_widest(state),),
        "divide": (),
    }
    if state.phase == "persist":
        return _distinct(state, state.close if state.settings.patience > 1 else ())[: state.settings.side_by_side]
    rests = [_rest(state, sort) for sort in sorts[state.phase]]
    if state.phase == "probe" and 0 < _gain(state, rests[1]) < _KIN_FRACTION * _gain(state, rests[0]):
        rests = rests[1:]
    found = _distinct(state, [part for rest in rests for part in (rest, without_hardest(rest))])
    return tuple(addition for addition in found if not _has_been_tried(state, addition))


def _widest(state: SearchState) -> Addition:
    """All that slices may share, once what repeats save is won; nothing before."""
    left = _gain(state, _rest(state, state.beyond))
    possible = MergeConfiguration(shared=state.beyond).saved_bytes
    return state.widest if left <= _LEFT_FRACTION * possible else ()


def _has_been_tried(state: SearchState, addition: Addition) -> bool:
    return state.phase != "probe" and fingerprint(state.accepted.joined(addition)) in state.failed


def _divide(state: SearchState) -> tuple[tuple[Addition, ...], tuple[Waiting, ...], Addition]:
    """The most promising additions that have not failed in the very same form; those are split until they have not."""
    rejected = state.rejected
    waiting = list(state.waiting)
    fresh: dict[str, Waiting] = {}
    while waiting:
        each = waiting.pop(0)
        if _gain(state, each.addition) <= 0:
            continue
        leads_to = fingerprint(state.accepted.joined(each.addition))
        if failure := state.failed.get(leads_to):
            smaller = _parts(state, each.addition, failure)
            waiting += smaller
            rejected = rejected if smaller else (*rejected, *each.addition)
        else:
            fresh.setdefault(leads_to, each)
    found = sorted(fresh.values(), key=lambda each: (-_promise(state, each), _names(each.addition)))
    now, later = found[: state.settings.side_by_side], found[state.settings.side_by_side :]
    return tuple(each.addition for each in now), tuple(later), memory_forward(rejected)


def _promise(state: SearchState, waiting: Waiting) -> float:
    """The bytes an addition saves, and less of them the further from its targets the whole stayed that it is part of:
    a small part of what nearly passed is worth more than a large one of what was hopeless."""
    return _gain(state, waiting.addition) * math.exp(-waiting.shortfall / _FORGIVEN)


def _distinct(state: SearchState, additions: Iterable[Addition]) -> tuple[Addition, ...]:
    """One addition for each configuration that it leads to, none for the accepted one; largest saving first."""
    leading = {fingerprint(state.accepted.joined(addition)): addition for addition in reversed(list(additions))}
    useful = [addition for addition in leading.values() if _gain(state, addition) > 0]
    return tuple(sorted(useful, key=lambda addition: (-_gain(state, addition), _names(addition))))


def _names(addition: Addition) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(map(str, layer.members)) for layer in addition)

"""The merge search as a state machine over values: propose a round of candidates, take their outcomes, go on.

A round is proposed whole and judged whole, in the order of its candidates, so what is accepted depends on the seed
alone and never on how many trials run at once or which ends first.

Probe: share without training, first among layers whose weights resemble each other (copies, and models fine-tuned
from one ancestor), then everything; each also without the hardest few per cent of the bytes (the lightest, earliest
layers hold most of the difficulty: our measurement). Sift: what of the first is left, in halves, still without
training. Kin: the same relatives with joint retraining, which they need little of. Leap: everything at once with joint
retraining, on top of what was won so far: across and within models, then across models, each with and, unless it was
hopeless, without the hardest. Widen: once repeats within models share, smaller layers as slices of larger ones.
Persist: wholes that failed on validation close to their targets once more, with several times the steps. Divide: what
is left, split by the queries that objected and in halves, memory-forward, down to two members of one group, the
lightest included. Every failed addition is replaced by smaller ones or rejected, so the search terminates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from gemel_ray.policy.additions import Addition, fingerprint, names, pieces, without_hardest
from gemel_ray.policy.candidates import candidate_of
from gemel_ray.policy.dividing import after_division, divide
from gemel_ray.policy.judging import decisive, failures, is_hopeless, winner
from gemel_ray.policy.search_state import PHASES, Phase, SearchSettings, SearchState, Waiting
from gemel_ray.spec.layers import LayerGroup
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import Candidate, Outcome

_NEXT: Mapping[Phase, Phase] = dict(itertools.pairwise(PHASES))

# Where relatives make up less of the saving than this, sharing everything without training is known to fail.
_KIN_FRACTION = 0.9

# So much better a trial's models agree on frames they learned from than on others when they know them by heart (.2 to
# .3 with 1,500 images of ten classes, .03 at most on five fixed cameras).
_OVERFIT = 0.1
# Slices are worth trying once all but so much of what repeats save is won: where those failed, slices do (ten-class
# strangers, small trials of drawn streets).
_LEFT_FRACTION = 0.05
# Sets of models are looked at so often without training them, at most.
_MOST_PROBES = 12
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


def advance(state: SearchState, outcomes: Mapping[int, Outcome], *, release: int) -> SearchState:
    """The state after a round whose every candidate has its outcome.

    `release` is the release that publishes the round's winner, or the one before where nothing won.
    """
    won = winner(state, outcomes)
    settled = state.model_copy(
        update={
            "accepted": won.configuration if won else state.accepted,
            "failed": state.failed | failures(state, outcomes),
            "overfits": state.overfits or _has_overfit(state, outcomes, won),
            "close": (*state.close, *_close(state, outcomes, won)),
            "release": release,
            "steps": state.steps + sum(outcomes[each.number].steps for each in decisive(state, outcomes, won)),
            "round": (),
            "adds": (),
        }
    )
    if not state.divides:
        return _propose(_moved_on(settled))
    more, rejected = after_division(state, outcomes, won)
    return _propose(settled.model_copy(update={"waiting": (*state.waiting, *more), "rejected": rejected}))


def _moved_on(state: SearchState) -> SearchState:
    """The next phase; dividing begins with all that is left, sifting with the halves of what was just probed."""
    phase, left = _NEXT[state.phase], list[Addition]()
    if phase == "sift":
        left = pieces(state.rest(state.relatives), ())
    if phase == "divide":
        left = [state.rest(sort) for sort in (state.groups, state.beyond, _widest(state))]
    return state.model_copy(update={"phase": phase, "waiting": tuple(Waiting(addition=rest) for rest in left)})


def _close(state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None) -> list[Addition]:
    """Additions of a leap that would have saved more than its winner, and failed close to their targets."""
    decided = {each.number: outcomes[each.number] for each in decisive(state, outcomes, won)}
    return [
        addition
        for candidate, addition in zip(state.round, state.adds, strict=True)
        if state.phase in ("kin", "leap", "widen")
        and (outcome := decided.get(candidate.number)) is not None
        and _may_persist(outcome)
    ]


def _may_persist(outcome: Outcome) -> bool:
    """Whether more steps may let it pass. What the gate refused after the last step it refused again after three times
    as many (five of five wholes at .98 and .99)."""
    return outcome.shortfall is not None and outcome.shortfall <= _CLOSE and not outcome.accuracies


def _has_overfit(state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None) -> bool:
    return any((outcomes[each.number].overfit or 0.0) >= _OVERFIT for each in decisive(state, outcomes, won))


def _propose(state: SearchState) -> SearchState:
    """Fill the next round, as far as the budget goes; phases that have nothing to try are passed over."""
    wanted, waiting, rejected = _wanted(state)
    while not wanted and state.phase != "divide":
        state = _moved_on(state)
        wanted, waiting, rejected = _wanted(state)
    steps = 0
    if state.trains:
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
            "trials": state.trials + (len(wanted) if state.trains else 0),
        }
    )


def _wanted(state: SearchState) -> tuple[tuple[Addition, ...], tuple[Waiting, ...], Addition]:
    """What the next round of a phase adds, what waits, and what is rejected."""
    if state.phase == "sift" and state.proposed - state.trials >= _MOST_PROBES:
        return (), (), state.rejected
    return divide(state) if state.divides else (_wholes(state), state.waiting, state.rejected)


def _steps_each(state: SearchState, candidates: int) -> int:
    """Steps that each of a round's candidates may take: all, or an even part of what is left of the budget."""
    settings = state.settings
    steps = settings.max_steps * (settings.patience if state.phase == "persist" else 1)
    if settings.most_steps is None or not candidates:
        return steps
    return min(steps, max(settings.most_steps - state.steps, 0) // candidates)


def _wholes(state: SearchState) -> tuple[Addition, ...]:
    """What a probe, kin or leap round adds: everything of a sort that is left, with and without the hardest."""
    sorts = {
        "probe": (state.groups, state.relatives),
        "kin": (state.relatives,),
        "leap": (state.beyond, state.groups),
        "widen": (_widest(state),),
    }
    if state.phase == "persist":
        return _distinct(state, state.close if state.settings.patience > 1 else ())[: state.settings.side_by_side]
    rests = [state.rest(sort) for sort in sorts[state.phase]]
    if state.phase == "probe" and 0 < state.gain(rests[1]) < _KIN_FRACTION * state.gain(rests[0]):
        rests = rests[1:]
    found = _distinct(state, [part for rest in rests for part in _with_and_without_hardest(state, rest)])
    return tuple(addition for addition in found if not _has_been_tried(state, addition))


def _with_and_without_hardest(state: SearchState, rest: Addition) -> Sequence[Addition]:
    failure = state.failed.get(fingerprint(state.accepted.joined(rest)))
    return () if failure is not None and is_hopeless(failure) else (rest, without_hardest(rest))


def _widest(state: SearchState) -> Addition:
    """All that slices may share, once what repeats save is won; nothing before."""
    left = state.gain(state.rest(state.beyond))
    possible = MergeConfiguration(shared=state.beyond).saved_bytes
    return state.widest if left <= _LEFT_FRACTION * possible else ()


def _has_been_tried(state: SearchState, addition: Addition) -> bool:
    return state.trains and fingerprint(state.accepted.joined(addition)) in state.failed


def _distinct(state: SearchState, additions: Iterable[Addition]) -> tuple[Addition, ...]:
    """One addition for each configuration that it leads to, none for the accepted one; largest saving first."""
    leading = {fingerprint(state.accepted.joined(addition)): addition for addition in reversed(list(additions))}
    useful = [addition for addition in leading.values() if state.gain(addition) > 0]
    return tuple(sorted(useful, key=lambda addition: (-state.gain(addition), names(addition))))

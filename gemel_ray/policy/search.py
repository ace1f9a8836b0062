"""The merge search as a state machine over values: propose a round of candidates, take their outcomes, go on.

A round is proposed whole and judged whole, in the order of its candidates, so what is accepted depends on the seed
alone and never on how many trials run at once or which ends first.

Probe: share without training, first among layers whose weights resemble each other (copies, and models fine-tuned
from one ancestor), then everything; each also without the hardest few per cent of the bytes (the lightest, earliest
layers hold most of the difficulty: our measurement). Kin: the same relatives with joint retraining, which they need
little of. Leap: everything at once with joint retraining, on top of what was won so far: across and within models,
then across models, each with and without the hardest. Persist: wholes that failed close to their targets once more,
with several times the steps. Divide: what is left, split by the queries that objected and in
halves, memory-forward, down to two members of one group, the lightest included. Every failed addition is replaced by
smaller ones or rejected, so the search terminates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gemel_ray.policy.additions import Addition, fingerprint, memory_forward, pieces, without_hardest
from gemel_ray.policy.budget import decisive_steps, steps_each
from gemel_ray.policy.search_state import Phase, SearchSettings, SearchState
from gemel_ray.spec.layers import LayerGroup
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.trials import SUPERSEDED, Candidate, Outcome

_NEXT: Mapping[Phase, Phase] = {"probe": "kin", "kin": "leap", "leap": "persist", "persist": "divide"}

# Where relatives make up less of the saving than this, sharing everything without training is known to fail.
_KIN_FRACTION = 0.9

# Strangers must move far from where averaging leaves them. Relatives, and additions to what is accepted, are close to
# their goal already: at the full rate they are thrown back first (.79 to .73 in 15 steps, then .94 after 90; at the
# gentle one .95 after 45: five street cameras, own measurement).
_FAR = ("leap", "persist")
_LEAP_RATE = 1e-3
_GENTLE_RATE = 3e-4
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
    name: str = "",
) -> SearchState:
    """A search over groups, starting from a release of the originals, or from one that shares what is `accepted`."""
    across, alike, wider = (MergeConfiguration.of(found).shared for found in (groups, relatives, beyond))
    state = SearchState(
        name=name, groups=across, relatives=alike, beyond=wider, settings=settings, seed=seed, release=release,
        accepted=accepted or MergeConfiguration(),
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
    waiting = (_rest(state, state.groups), _rest(state, state.beyond)) if phase == "divide" else ()
    return state.model_copy(update={"phase": phase, "waiting": waiting})


def _failed(state: SearchState, outcomes: Mapping[int, Outcome]) -> dict[str, tuple[str, ...]]:
    return {
        fingerprint(candidate.configuration): outcomes[candidate.number].objectors
        for candidate in state.round
        if candidate.max_steps > 0 and _has_failed(outcomes[candidate.number])
    }


def _close(state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None) -> list[Addition]:
    """Additions of a leap that would have saved more than its winner, and failed close to their targets."""
    saved = won.configuration.saved_bytes if won else 0
    shortfalls = {c.number: outcomes[c.number].shortfall for c in state.round if c.configuration.saved_bytes > saved}
    return [
        addition
        for candidate, addition in zip(state.round, state.adds, strict=True)
        if state.phase in ("kin", "leap")
        and (short := shortfalls.get(candidate.number)) is not None
        and short <= _CLOSE
    ]


def _has_failed(outcome: Outcome) -> bool:
    return not outcome.passed and outcome.reason != SUPERSEDED


def _rest(state: SearchState, wanted: Addition) -> Addition:
    """The layers of `wanted` that still save something on top of what is accepted."""
    return tuple(layer for layer in wanted if _gain(state, (layer,)) > 0)


def _gain(state: SearchState, addition: Addition) -> int:
    return state.accepted.joined(addition).saved_bytes - state.accepted.saved_bytes


def _after_division(
    state: SearchState, outcomes: Mapping[int, Outcome], won: Candidate | None
) -> tuple[list[Addition], Addition]:
    """What waits and what is rejected after a dividing round.

    Those that passed beside the winner are tried again together, on top of it.
    """
    waiting: list[Addition] = []
    rejected, passed = state.rejected, MergeConfiguration()
    for candidate, addition in zip(state.round, state.adds, strict=True):
        outcome = outcomes[candidate.number]
        if candidate is won:
            continue
        if outcome.passed:
            passed = passed.joined(addition)
        else:
            smaller = pieces(addition, outcome.objectors, delta_rank=state.settings.delta_rank)
            waiting += smaller
            rejected = rejected if smaller else (*rejected, *addition)
    return [passed.shared, *waiting], rejected


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
            "round": tuple(_candidate(state, place, addition, steps) for place, addition in enumerate(wanted)),
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
        "divide": (),
    }
    if state.phase == "persist":
        return _distinct(state, state.close if state.settings.patience > 1 else ())[: state.settings.side_by_side]
    rests = [_rest(state, sort) for sort in sorts[state.phase]]
    if state.phase == "probe" and 0 < _gain(state, rests[1]) < _KIN_FRACTION * _gain(state, rests[0]):
        rests = rests[1:]
    found = _distinct(state, [part for rest in rests for part in (rest, without_hardest(rest))])
    return tuple(addition for addition in found if not _has_been_tried(state, addition))


def _has_been_tried(state: SearchState, addition: Addition) -> bool:
    return state.phase != "probe" and fingerprint(state.accepted.joined(addition)) in state.failed


def _divide(state: SearchState) -> tuple[tuple[Addition, ...], tuple[Addition, ...], Addition]:
    """The heaviest additions that have not failed in the very same form; those are split until they have not."""
    rejected = state.rejected
    waiting = list(state.waiting)
    fresh: list[Addition] = []
    while waiting:
        addition = waiting.pop(0)
        if _gain(state, addition) <= 0:
            continue
        objectors = state.failed.get(fingerprint(state.accepted.joined(addition)))
        if objectors is not None:
            smaller = pieces(addition, objectors, delta_rank=state.settings.delta_rank)
            waiting += smaller
            rejected = rejected if smaller else (*rejected, *addition)
        else:
            fresh.append(addition)
    found = _distinct(state, fresh)
    return found[: state.settings.side_by_side], found[state.settings.side_by_side :], memory_forward(rejected)


def _distinct(state: SearchState, additions: Iterable[Addition]) -> tuple[Addition, ...]:
    """One addition for each configuration that it leads to, none for the accepted one; largest saving first."""
    leading = {fingerprint(state.accepted.joined(addition)): addition for addition in reversed(list(additions))}
    useful = [addition for addition in leading.values() if _gain(state, addition) > 0]
    return tuple(sorted(useful, key=lambda addition: (-_gain(state, addition), _names(addition))))


def _names(addition: Addition) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(map(str, layer.members)) for layer in addition)


def _candidate(state: SearchState, place: int, addition: Addition, max_steps: int) -> Candidate:
    number = state.proposed + place
    return Candidate(
        number=number,
        model_set=state.name,
        label=f"{state.phase} {_told(addition)}",
        configuration=state.accepted.joined(addition),
        max_steps=max_steps,
        start_release=state.release,
        start=state.settings.start if state.phase in _FAR else "mean",
        objective=state.settings.objective,
        learning_rate=_LEAP_RATE if state.phase in _FAR else _GENTLE_RATE,
        gate_margin=state.settings.gate_margin,
        seed=state.seed + number,
    )


def _told(addition: Sequence[SharedLayer]) -> str:
    queries = {member.query for layer in addition for member in layer.members}
    what = f"{len(addition)} layer groups" if len(addition) > 1 else f"{addition[0].members[0].layer}"
    return f"{what} of {len(queries)} queries" if len(queries) > 1 else f"{what} within {min(queries)}"

"""How a round is judged: who wins, and who can change nothing. What was tried beside what makes no difference."""

from __future__ import annotations

from collections.abc import Mapping

from gemel_ray.policy.additions import fingerprint
from gemel_ray.policy.search_state import Failure, Phase, SearchState
from gemel_ray.spec.trials import SUPERSEDED, Candidate, Outcome

# A whole that stayed so far below its target is not saved by leaving out its hardest 3 %: never in 25 pairs of our runs
# (ten-class strangers, detectors, mixed architectures). In slices it once was, of nine.
_HOPELESS = 0.15
_RULING: tuple[Phase, ...] = ("kin", "leap")
# A part that saves so much of what the whole saves is the whole but for its hardest layers.
_NEARLY = 0.9

Outcomes = Mapping[int, Outcome]


def winner(state: SearchState, outcomes: Outcomes) -> Candidate | None:
    """The round's candidate to accept: most bytes saved among those that passed; the first of equals."""
    passed = [each for each in state.round if _has_passed(state, each, outcomes)]
    return max(passed, key=lambda candidate: candidate.configuration.saved_bytes, default=None)


def is_superseded(state: SearchState, candidate: Candidate, outcomes: Outcomes) -> bool:
    """Whether a candidate of the round can change nothing any more.

    One that saves as much has passed already, or what it is nearly the whole of is hopeless. In a dividing round every
    outcome counts, since several may be accepted one after the other.
    """
    if state.divides:
        return False
    saved = [each.configuration.saved_bytes for each in state.round if _has_surely_passed(state, each, outcomes)]
    is_beaten = bool(saved) and candidate.configuration.saved_bytes <= max(saved)
    return is_beaten or _is_ruled_out(state, candidate, outcomes)


def decisive(state: SearchState, outcomes: Outcomes, won: Candidate | None) -> list[Candidate]:
    """The candidates of a round that ran to their end however many ran at once.

    Others may have been stopped or skipped, which depends on timing: nothing of them counts, so that a budget of steps
    ends where it would with one trial at a time. In a dividing round all run to their end.
    """
    if state.divides:
        return list(state.round)
    saved = won.configuration.saved_bytes if won else 0
    return [
        each
        for each in state.round
        if each is won or (each.configuration.saved_bytes > saved and not _is_ruled_out(state, each, outcomes))
    ]


def failures(state: SearchState, outcomes: Outcomes) -> dict[str, Failure]:
    """How the round's candidates failed that were trained, by their configurations' fingerprints.

    Not those that were ruled out: their parts may yet lead to the same configuration.
    """
    if not state.trains:
        return {}
    found = [(each, outcomes[each.number]) for each in state.round if not _is_ruled_out(state, each, outcomes)]
    return {fingerprint(each.configuration): failure_of(outcome) for each, outcome in found if _has_failed(outcome)}


def is_hopeless(failure: Failure | Outcome) -> bool:
    """Whether what failed stayed so far below its target that leaving out its hardest layers is in vain."""
    return failure.shortfall is not None and failure.shortfall >= _HOPELESS


def failure_of(outcome: Outcome) -> Failure:
    """What a search remembers of a candidate that failed."""
    return Failure(objectors=outcome.objectors, shortfall=outcome.shortfall)


def _has_failed(outcome: Outcome) -> bool:
    return not outcome.passed and outcome.reason != SUPERSEDED


def _has_passed(state: SearchState, candidate: Candidate, outcomes: Outcomes) -> bool:
    outcome = outcomes.get(candidate.number)
    return outcome is not None and outcome.passed and not _is_ruled_out(state, candidate, outcomes)


def _has_surely_passed(state: SearchState, candidate: Candidate, outcomes: Outcomes) -> bool:
    """Whether a candidate has passed, and no whole that is still being tried may yet rule it out."""
    return _has_passed(state, candidate, outcomes) and not any(
        _is_nearly(state, candidate, whole)
        for whole in state.round
        if state.phase in _RULING and whole.number not in outcomes
    )


def _is_ruled_out(state: SearchState, candidate: Candidate, outcomes: Outcomes) -> bool:
    """Whether the candidate is all but the hardest layers of a whole that is hopeless."""
    return state.phase in _RULING and any(
        is_hopeless(outcomes[whole.number]) and _is_nearly(state, candidate, whole)
        for whole in state.round
        if whole.number in outcomes
    )


def _is_nearly(state: SearchState, candidate: Candidate, whole: Candidate) -> bool:
    adds = dict(zip((each.number for each in state.round), state.adds, strict=True))
    part, all_of_it = adds[candidate.number], adds[whole.number]
    return set(part) < set(all_of_it) and state.gain(part) >= _NEARLY * state.gain(all_of_it)

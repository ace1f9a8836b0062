"""What a search may still spend on retraining."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gemel_ray.spec.trials import Candidate, Outcome


def decisive_steps(candidates: Iterable[Candidate], outcomes: Mapping[int, Outcome], *, won: Candidate | None) -> int:
    """Steps of a round's trials that it could not have done without, whatever ran beside what.

    Trials that save no more than the winner may have been stopped or skipped, which depends on timing: what they
    took is not counted, so that the budget ends where it would with one trial at a time.
    """
    return sum(outcomes[candidate.number].steps for candidate in decisive(candidates, won=won))


def decisive(candidates: Iterable[Candidate], *, won: Candidate | None) -> list[Candidate]:
    """The candidates of a round that ran to their end however many ran at once."""
    saved = won.configuration.saved_bytes if won else 0
    return [each for each in candidates if each is won or each.configuration.saved_bytes > saved]


def steps_each(max_steps: int, *, most_steps: int | None, spent_steps: int, candidates: int) -> int:
    """Steps that each of a round's candidates may take: `max_steps`, or an even part of what is left of the budget."""
    if most_steps is None or not candidates:
        return max_steps
    return min(max_steps, max(most_steps - spent_steps, 0) // candidates)

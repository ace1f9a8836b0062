"""Metrics, each by its formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from gemel_ray.spec.actions import Answered, Arrived, Done, Dropped, Infer, Load, Verdict

AnswerT = TypeVar("AnswerT")


def goodput_fraction(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """By query: frames answered at or before their deadline / frames arrived. A dropped frame is a miss."""
    return _fraction(verdicts, lambda verdict: isinstance(verdict, Answered) and is_in_time(verdict))


def stale_fraction(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """By query: frames dropped / frames arrived. Each of them gets the last answer again."""
    return _fraction(verdicts, lambda verdict: isinstance(verdict, Dropped))


def is_in_time(verdict: Verdict) -> bool:
    """now_ms <= deadline_ms."""
    return verdict.now_ms <= verdict.frame.deadline_ms


def swap_bytes(done: Iterable[Done]) -> int:
    """Sum of the bytes of all loads that succeeded."""
    return sum(each.action.bytes for each in done if isinstance(each.action, Load) and each.failure is None)


def busy_fraction(done: Iterable[Done], span_ms: float) -> float:
    """Sum of the measured times of all inferences / span_ms; 0 for an empty span."""
    busy_ms = sum(each.took_ms for each in done if isinstance(each.action, Infer))
    return busy_ms / span_ms if span_ms > 0 else 0.0


def prediction_error_ms(done: Iterable[Done]) -> dict[str, float]:
    """By kind of action, 'load' and 'infer': mean of |took_ms - predicted_ms|. Kinds that never ran are left out."""
    errors: dict[str, list[float]] = {}
    for each in done:
        kind = "load" if isinstance(each.action, Load) else "infer"
        errors.setdefault(kind, []).append(abs(each.took_ms - each.action.predicted_ms))
    return {kind: sum(found) / len(found) for kind, found in errors.items()}


def standing_answers(verdicts: Iterable[Verdict]) -> dict[str, list[int | None]]:
    """By query, for each frame in order of arrival: the place in that order of the frame whose answer stood for it.

    A frame that was answered stands for itself, however late; a dropped one gets the answer that was the last when it
    was dropped, None before the first. `verdicts` are in order of time, frames numbered in order of arrival.
    """
    verdicts = list(verdicts)
    places: dict[str, dict[int, int]] = {}
    for frame in sorted((verdict.frame for verdict in verdicts), key=lambda frame: frame.frame):
        own = places.setdefault(frame.query, {})
        own[frame.frame] = len(own)
    standing: dict[str, list[int | None]] = {query: [None] * len(own) for query, own in places.items()}
    last: dict[str, int] = {}
    for verdict in verdicts:
        query = verdict.frame.query
        place = places[query][verdict.frame.frame]
        if isinstance(verdict, Answered):
            last[query] = place
        standing[query][place] = last.get(query)
    return standing


def given_answers(
    arrivals: Iterable[Arrived], verdicts: Iterable[Verdict], answers: Mapping[int, AnswerT], query: str
) -> list[AnswerT | None]:
    """One query's own answers in order of arrival, None for a frame that was dropped; `answers` is by frame."""
    answered = {verdict.frame.frame for verdict in verdicts if isinstance(verdict, Answered)}
    frames = [event.frame for event in arrivals if event.frame.query == query]
    ordered = sorted(frames, key=lambda frame: frame.arrived_ms)
    return [answers[frame.frame] if frame.frame in answered else None for frame in ordered]


def with_stale(given: Sequence[AnswerT | None]) -> list[AnswerT | None]:
    """What a user sees: for a frame without an answer of its own the one before it again; None before the first."""
    seen: list[AnswerT | None] = []
    last: AnswerT | None = None
    for answer in given:
        last = last if answer is None else answer
        seen.append(last)
    return seen


def end_to_end_accuracy(
    given: Sequence[AnswerT | None], reference: Sequence[AnswerT], agreement: Callable[[AnswerT, AnswerT], float]
) -> float:
    """Mean over all frames of agreement(answer seen, reference answer), stale answers repeated.

    The reference is the original model's answer to every frame. A frame before the first answer counts 0. 1 for no
    frames; ValueError when the lengths differ.
    """
    pairs = zip(with_stale(given), reference, strict=True)
    agreed = [0.0 if answer is None else agreement(answer, wanted) for answer, wanted in pairs]
    return sum(agreed) / len(agreed) if agreed else 1.0


def _fraction(verdicts: Iterable[Verdict], counts: Callable[[Verdict], bool]) -> dict[str, float]:
    counted: Counter[str] = Counter()
    arrived: Counter[str] = Counter()
    for verdict in verdicts:
        arrived[verdict.frame.query] += 1
        counted[verdict.frame.query] += counts(verdict)
    return {query: counted[query] / count for query, count in arrived.items()}

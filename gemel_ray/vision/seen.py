"""What a user sees of a stream of frames, held against the original's answers to every one of them."""

from __future__ import annotations

from collections.abc import Sequence

from gemel_ray.spec.answers import Answer, Classified, Detected
from gemel_ray.vision.metrics import compare


def end_to_end_accuracy(reference: Sequence[Answer], seen: Sequence[Answer | None]) -> float:
    """Agreement of the answers seen, stale ones included, with the original's own, by the task's measure.

    `reference` holds the original's answer to every frame, `seen` what stood as the answer when that frame was done
    with; None, before the first answer, agrees with nothing.
    """
    given = [_no_answer(wanted) if answer is None else answer for wanted, answer in zip(reference, seen, strict=True)]
    return compare(reference, given).estimate


def _no_answer(wanted: Answer) -> Answer:
    # No class has an empty name.
    return Classified("", ()) if isinstance(wanted, Classified) else Detected(())

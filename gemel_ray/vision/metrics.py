"""How well answers agree with reference answers, and how sure that is. Pure numpy.

Classification: balanced agreement, the mean over the reference's classes of the share of that class's frames
answered alike. Cameras see mostly background; the plain share would reward a model that always says so.
Detection: F1 at IoU 0.5, matched best score first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gemel_ray.spec.answers import Answer, Box, Classified, Detected

BALANCED = "balanced agreement"
DETECTION_F1 = "F1 at IoU 0.5"

# One-sided 95 %.
_Z = 1.6449
_RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class Score:
    """An estimate over `frames` frames and its one-sided 95 % lower confidence bound."""

    measure: str
    estimate: float
    lower_bound: float
    frames: int


def compare(reference: Sequence[Answer], given: Sequence[Answer]) -> Score:
    """Agreement of answers with reference answers to the same frames."""
    assert len(reference) == len(given), "one answer for each reference answer"
    if reference and isinstance(reference[0], Detected):
        return _compare_boxes([_boxes(answer) for answer in reference], [_boxes(answer) for answer in given])
    return compare_labels([_label(answer) for answer in reference], [_label(answer) for answer in given])


def compare_labels(reference: Sequence[str], given: Sequence[str]) -> Score:
    """Balanced agreement. Bound: the mean of the classes' Wilson lower bounds (conservative: all err at once)."""
    expected, answered = np.asarray(reference), np.asarray(given)
    recalls, bounds = [], []
    for label in sorted(set(reference)):
        here = expected == label
        hits, frames = int((answered[here] == label).sum()), int(here.sum())
        recalls.append(hits / frames)
        bounds.append(wilson_lower(hits, frames))
    if not recalls:
        return Score(BALANCED, 0.0, 0.0, 0)
    return Score(BALANCED, float(np.mean(recalls)), float(np.mean(bounds)), len(expected))


def wilson_lower(hits: int, trials: int, z: float = _Z) -> float:
    """Wilson's score interval, lower end (E. B. Wilson, JASA 1927)."""
    if trials == 0:
        return 0.0
    share = hits / trials
    centre = share + z * z / (2 * trials)
    spread = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At a share of 0 the two terms cancel only up to rounding.
    return max(0.0, float((centre - spread) / (1 + z * z / trials)))


def _compare_boxes(reference: Sequence[Sequence[Box]], given: Sequence[Sequence[Box]]) -> Score:
    counts = np.array([match_counts(r, g) for r, g in zip(reference, given, strict=True)]).reshape(-1, 3)
    bound = bootstrap_lower(counts, lambda rows: f1(*rows.sum(axis=0)))
    return Score(DETECTION_F1, f1(*counts.sum(axis=0)), bound, len(counts))


def match_counts(reference: Sequence[Box], given: Sequence[Box], *, iou: float = 0.5) -> tuple[int, int, int]:
    """(matched, surplus, missed): each given box, best score first, takes the free reference box of its class it
    overlaps most, if that overlap reaches `iou`.
    """
    free = list(reference)
    matched = 0
    for box in sorted(given, key=lambda box: -box.score):
        alike = [(overlap(box, other), place) for place, other in enumerate(free) if other.label == box.label]
        best, place = max(alike, default=(0.0, -1))
        if best >= iou:
            free.pop(place)
            matched += 1
    return matched, len(given) - matched, len(free)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    shared = max(0.0, width) * max(0.0, height)
    union = one.width * one.height + other.width * other.height - shared
    return shared / union if union > 0 else 0.0


def f1(matched: float, surplus: float, missed: float) -> float:
    """Harmonic mean of precision and recall; 1 where there was nothing to find and nothing was found."""
    total = 2 * matched + surplus + missed
    return float(2 * matched / total) if total else 1.0


def bootstrap_lower(rows: np.ndarray, statistic: Callable[[np.ndarray], float], *, seed: int = 0) -> float:
    """Lower end of the one-sided 95 % percentile bootstrap over frames."""
    if not len(rows):
        return 0.0
    draws = np.random.default_rng(seed).integers(0, len(rows), size=(_RESAMPLES, len(rows)))
    return float(np.quantile([statistic(rows[draw]) for draw in draws], 0.05))


def _label(answer: Answer) -> str:
    assert isinstance(answer, Classified), "classification is compared with classification"
    return answer.label


def _boxes(answer: Answer) -> tuple[Box, ...]:
    assert isinstance(answer, Detected), "detection is compared with detection"
    return answer.boxes

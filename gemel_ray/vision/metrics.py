"""How well answers agree with reference answers, and how sure that is. Pure numpy.

Classification: balanced agreement, the mean over the reference's classes of the share of that class's frames
answered alike. Cameras see mostly background; the plain share would reward a model that always says so.
Detection: F1 at IoU 0.5, matched best score first. Targets are held against F1 and not against mean average
precision, which is there for reports: a query gives only boxes above its score threshold, so the recall that average
precision integrates over is cut off there, and a surplus box with a low score, which the user sees like any other,
costs it nothing. F1 weighs exactly the boxes that are given. It is the steadier too, since the mean over classes
makes the few boxes of a rare class as heavy as all others: on the same 160 frames of a street camera F1 was .94 with
a lower bound of .92, mAP .89 with a bound of .81.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gemel_ray.spec.answers import Answer, Box, Classified, Detected

BALANCED = "balanced agreement"
RELATIVE = "accuracy on labels relative to the original's"
DETECTION_F1 = "F1 at IoU 0.5"
DETECTION_MAP = "mAP at IoU 0.5"

_IOU = 0.5
# One-sided 95 %.
_Z = 1.6449
_RESAMPLES = 500
# Elements of one array of a bootstrap at most (128 MB); more boxes are resampled in several goes.
_MOST_ELEMENTS = 16_000_000


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
        return compare_boxes([_boxes(answer) for answer in reference], [_boxes(answer) for answer in given])
    return compare_labels([_label(answer) for answer in reference], [_label(answer) for answer in given])


def compare_labels(reference: Sequence[str], given: Sequence[str]) -> Score:
    """Balanced agreement, and its bound by `mean_lower`."""
    expected, answered = np.asarray(reference), np.asarray(given)
    recalls, bounds = [], []
    for label in sorted(set(reference)):
        here = expected == label
        hits, frames = int((answered[here] == label).sum()), int(here.sum())
        recalls.append(hits / frames)
        bounds.append(wilson_lower(hits, frames))
    if not recalls:
        return Score(BALANCED, 0.0, 0.0, 0)
    return Score(BALANCED, float(np.mean(recalls)), mean_lower(recalls, bounds), len(expected))


def relative_accuracy(truth: Sequence[Answer], original: Sequence[Answer], merged: Sequence[Answer]) -> Score:
    """How much of the original's accuracy on labels the merged model has; above 1 where it has become better.

    Classification: ratio of balanced accuracies. Detection: ratio of F1s, bound by bootstrap over frames, which keeps
    the pairs together.
    """
    if truth and isinstance(truth[0], Detected):
        return _relative_f1(*([_boxes(answer) for answer in answers] for answers in (truth, original, merged)))
    return relative_labels(*([_label(answer) for answer in answers] for answers in (truth, original, merged)))


def relative_labels(truth: Sequence[str], original: Sequence[str], merged: Sequence[str]) -> Score:
    """Ratio of balanced accuracies, with a bound from the frames that only one of the two gets right.

    What was gained and lost is bounded class by class (Wilson) and joined as `mean_lower` does: the difference of two
    shares of the same frames. The original's accuracy counts as known: it errs alike above and below the line.
    """
    expected, before, after = (np.asarray(labels) for labels in (truth, original, merged))
    accuracies, changes, bounds = [], [], []
    for label in sorted(set(truth)):
        here = expected == label
        was_right, is_right = before[here] == label, after[here] == label
        change, bound = _change(int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum()), len(is_right))
        accuracies.append(was_right.mean())
        changes.append(change)
        bounds.append(bound)
    if not accuracies or not np.mean(accuracies):
        return Score(RELATIVE, 0.0, 0.0, len(expected))
    accuracy, difference = float(np.mean(accuracies)), float(np.mean(changes))
    distances = np.subtract(changes, bounds)
    least = difference - float(np.sqrt(np.sum(distances**2))) / len(distances)
    return Score(RELATIVE, 1 + difference / accuracy, max(0.0, 1 + least / accuracy), len(expected))


def _change(gained: int, lost: int, frames: int) -> tuple[float, float]:
    """The change of a share by frames gained and lost, and its lower bound (MOVER for a difference)."""
    gain, loss = gained / frames, lost / frames
    below, above = gain - wilson_lower(gained, frames), wilson_upper(lost, frames) - loss
    return gain - loss, gain - loss - float(np.hypot(below, above))


def wilson_upper(hits: int, trials: int, z: float = _Z) -> float:
    """Wilson's score interval, upper end."""
    return 1 - wilson_lower(trials - hits, trials, z)


def _relative_f1(
    truth: Sequence[Sequence[Box]], original: Sequence[Sequence[Box]], merged: Sequence[Sequence[Box]]
) -> Score:
    before, after = (_counts(truth, given) for given in (original, merged))

    def ratio(draws: np.ndarray) -> np.ndarray:
        return _f1(draws @ after) / np.maximum(_f1(draws @ before), 1e-9)

    found = float(ratio(np.ones((1, len(before))))[0])
    bound = min(bootstrap_lower(len(before), ratio), found * _most_certain(truth))
    return Score(RELATIVE, found, bound, len(before))


def mean_lower(estimates: Sequence[float], lower_bounds: Sequence[float]) -> float:
    """Lower bound of the mean of independent estimates, from a lower bound of each.

    The distances from estimate to bound add up as errors do, in squares: G. Y. Zou and A. Donner, Statistics in
    Medicine 2008 (MOVER). Averaging the bounds themselves would suppose that all classes err at once. Simulated, the
    true balanced agreement lies above it in at least 94 of 100 cases (tests/vision/test_agreement.py).
    """
    distances = np.subtract(estimates, lower_bounds)
    return max(0.0, float(np.mean(estimates) - np.sqrt(np.sum(distances**2)) / len(distances)))


def wilson_lower(hits: int, trials: int, z: float = _Z) -> float:
    """Wilson's score interval, lower end (E. B. Wilson, JASA 1927)."""
    if trials == 0:
        return 0.0
    share = hits / trials
    centre = share + z * z / (2 * trials)
    spread = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At a share of 0 the two terms cancel only up to rounding.
    return max(0.0, float((centre - spread) / (1 + z * z / trials)))


def compare_boxes(reference: Sequence[Sequence[Box]], given: Sequence[Sequence[Box]]) -> Score:
    """F1 at IoU 0.5 over all classes and frames together.

    Bound: bootstrap over frames, and no higher than full agreement on the frames with boxes is certain of: resamples of
    frames without a mistake have none, however few they are.
    """
    counts = _counts(reference, given)
    bound = bootstrap_lower(len(counts), lambda draws: _f1(draws @ counts))
    return Score(DETECTION_F1, f1(*counts.sum(axis=0)), min(bound, _most_certain(reference)), len(counts))


def _most_certain(reference: Sequence[Sequence[Box]]) -> float:
    """Wilson's lower bound where nothing went wrong on any of the frames with boxes; 0 where no frame has one."""
    shown = sum(1 for boxes in reference if boxes)
    return wilson_lower(shown, shown)


def _counts(reference: Sequence[Sequence[Box]], given: Sequence[Sequence[Box]]) -> np.ndarray:
    return np.array([match_counts(r, g) for r, g in zip(reference, given, strict=True)]).reshape(-1, 3)


def match_counts(reference: Sequence[Box], given: Sequence[Box], *, iou: float = _IOU) -> tuple[int, int, int]:
    """(matched, surplus, missed) of one frame, matched as `match_boxes` does."""
    matched = sum(hit for _, hit in match_boxes(reference, given, iou=iou))
    return matched, len(given) - matched, len(reference) - matched


def match_boxes(reference: Sequence[Box], given: Sequence[Box], *, iou: float = _IOU) -> list[tuple[Box, bool]]:
    """The given boxes of one frame, best score first, and whether each hits a reference box.

    Each takes the free reference box of its class it overlaps most, if that overlap reaches `iou` (as in the COCO
    evaluation).
    """
    free, found = list(reference), []
    for box in sorted(given, key=lambda box: -box.score):
        alike = [(overlap(box, other), place) for place, other in enumerate(free) if other.label == box.label]
        best, place = max(alike, default=(0.0, -1))
        if hit := best >= iou:
            free.pop(place)
        found.append((box, hit))
    return found


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    shared = max(0.0, width) * max(0.0, height)
    union = one.width * one.height + other.width * other.height - shared
    return shared / union if union > 0 else 0.0


def f1(matched: float, surplus: float, missed: float) -> float:
    """Harmonic mean of precision and recall; 1 where there was nothing to find and nothing was found."""
    return float(_f1(np.array([matched, surplus, missed]))[()])


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 of (matched, surplus, missed) along the last axis."""
    twice, wrong = 2 * counts[..., 0], counts[..., 1] + counts[..., 2]
    return np.where(twice + wrong > 0, twice / np.maximum(twice + wrong, 1), 1.0)


def mean_average_precision(reference: Sequence[Sequence[Box]], given: Sequence[Sequence[Box]]) -> Score:
    """Mean over the reference's classes of the area under the precision-recall curve at IoU 0.5.

    The area is exact: precision is made non-increasing and summed at every point where recall rises (Pascal VOC
    since 2010, Everingham et al., IJCV 2015), not sampled at 101 recalls as COCO does. Boxes of classes that the
    reference never shows count for nothing, save where it shows none at all: then the score is 1 without any box
    and 0 with one. Bound: as `compare_boxes` has it.
    """
    assert len(reference) == len(given), "one list of boxes for each reference list"
    frames = len(reference)
    if not any(reference):
        score = float(frames > 0 and not any(given))
        return Score(DETECTION_MAP, score, 0.0, frames)
    hits = [[(box, hit) for box, hit in match_boxes(r, g)] for r, g in zip(reference, given, strict=True)]
    curves = [_curve(label, reference, hits) for label in sorted({box.label for r in reference for box in r})]
    width = max(1, *(len(curve.hit) for curve in curves))
    bound = bootstrap_lower(frames, lambda draws: _mean_precision(curves, draws), width=width)
    bound = min(bound, _most_certain(reference))
    return Score(DETECTION_MAP, float(_mean_precision(curves, np.ones((1, frames)))[0]), bound, frames)


@dataclass(frozen=True, slots=True)
class _Curve:
    """One class: for its given boxes, best score first, their frames and whether they hit; reference boxes a frame."""

    frame: np.ndarray
    hit: np.ndarray
    wanted: np.ndarray


def _curve(label: str, reference: Sequence[Sequence[Box]], hits: Sequence[Sequence[tuple[Box, bool]]]) -> _Curve:
    rows = [(-box.score, place, hit) for place, found in enumerate(hits) for box, hit in found if box.label == label]
    rows.sort(key=lambda row: row[:1])
    wanted = [sum(box.label == label for box in boxes) for boxes in reference]
    return _Curve(
        np.array([row[1] for row in rows], dtype=np.int64), np.array([row[2] for row in rows], bool), np.array(wanted)
    )


def _mean_precision(curves: Sequence[_Curve], draws: np.ndarray) -> np.ndarray:
    """The mean average precision of each row of draws (how often each frame is counted)."""
    each = np.stack([_average_precision(curve, draws) for curve in curves])
    shown = np.stack([draws @ curve.wanted > 0 for curve in curves])
    # A resample that lost all boxes of a class averages over the others.
    return np.where(shown, each, 0).sum(axis=0) / np.maximum(shown.sum(axis=0), 1)


def _average_precision(curve: _Curve, draws: np.ndarray) -> np.ndarray:
    if not len(curve.frame):
        return np.zeros(len(draws))
    times = draws[:, curve.frame]
    gained = times * curve.hit
    precision = gained.cumsum(axis=1) / np.maximum(times.cumsum(axis=1), 1)
    # The best precision at this recall or any higher one.
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.einsum("rb,rb->r", gained, envelope) / np.maximum(draws @ curve.wanted, 1)


def bootstrap_lower(
    frames: int, statistic: Callable[[np.ndarray], np.ndarray], *, width: int = 1, seed: int = 0
) -> float:
    """Lower end of the one-sided 95 % percentile bootstrap over frames (Efron and Tibshirani 1993, section 13.3).

    `statistic` takes resamples x frames, how often each resample counts each frame, and gives one number a resample;
    `width` is the longest row it makes of a resample, so that memory stays bounded. 0 where there are no frames.
    """
    if not frames:
        return 0.0
    rng, found = np.random.default_rng(seed), []
    at_once = max(1, min(_RESAMPLES, _MOST_ELEMENTS // max(width, frames)))
    for begin in range(0, _RESAMPLES, at_once):
        size = min(at_once, _RESAMPLES - begin)
        found.append(statistic(rng.multinomial(frames, np.full(frames, 1 / frames), size=size).astype(float)))
    return float(np.quantile(np.concatenate(found), 0.05))


def _label(answer: Answer) -> str:
    assert isinstance(answer, Classified), "classification is compared with classification"
    return answer.label


def _boxes(answer: Answer) -> tuple[Box, ...]:
    assert isinstance(answer, Detected), "detection is compared with detection"
    return answer.boxes

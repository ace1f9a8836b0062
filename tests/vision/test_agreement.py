"""Metrics of detection against cases worked out by hand, and their bounds."""

import numpy as np
import pytest

from gemel_ray.spec.answers import Box, Detected
from gemel_ray.vision.metrics import (
    DETECTION_F1,
    bootstrap_lower,
    compare,
    compare_boxes,
    f1,
    match_boxes,
    match_counts,
    mean_average_precision,
    mean_lower,
    overlap,
    wilson_lower,
)


def box(x, *, score=1.0, label="car", width=10.0):
    return Box(label, score, float(x), 0.0, width, 10.0)


def scene(frames=200, *, seed=0, drop=0.2, extra=0.2):
    """References, and answers that miss some of them and invent others."""
    rng = np.random.default_rng(seed)
    reference, given = [], []
    for _ in range(frames):
        boxes = [box(40 * place, label=("car", "bus")[int(rng.random() < 0.3)]) for place in range(rng.poisson(2))]
        kept = [box(b.x + 1, label=b.label, score=float(rng.random())) for b in boxes if rng.random() > drop]
        kept += [box(-50, score=float(rng.random()))] if rng.random() < extra else []
        reference.append(boxes)
        given.append(kept)
    return reference, given


def test_overlap_is_intersection_over_union():
    assert overlap(box(0), box(5)) == pytest.approx(1 / 3)
    assert overlap(box(0), box(10)) == 0
    assert overlap(box(0, width=0.0), box(0, width=0.0)) == 0


def test_each_reference_box_is_hit_once_and_by_the_surest():
    reference = [box(0)]
    found = match_boxes(reference, [box(0, score=0.6), box(1, score=0.9)])
    assert [(given.score, hit) for given, hit in found] == [(0.9, True), (0.6, False)]
    assert match_counts(reference, [box(0, score=0.6), box(1, score=0.9)]) == (1, 1, 0)
    assert match_counts(reference, [box(0, label="bus")]) == (0, 1, 1)


def test_a_box_takes_the_reference_it_overlaps_most():
    assert match_counts([box(3), box(0)], [box(0, score=0.9), box(3, score=0.8)]) == (2, 0, 0)


def test_f1_of_detections_counts_boxes_of_all_frames_together():
    score = compare([Detected((box(0), box(30))), Detected(())], [Detected((box(0),)), Detected((box(0),))])
    assert (score.measure, score.frames) == (DETECTION_F1, 2)
    assert score.estimate == pytest.approx(f1(1, 1, 1)) == pytest.approx(0.5)


def test_average_precision_of_a_case_worked_out_by_hand():
    # Best first: hit, surplus, hit; three to find. Precision 1 at recall 1/3, then 2/3 at recall 2/3, then nothing.
    reference = [[box(0), box(30)], [box(0)]]
    given = [[box(0, score=0.9), box(90, score=0.8), box(30, score=0.7)], []]
    assert mean_average_precision(reference, given).estimate == pytest.approx(1 / 3 + 2 / 3 / 3)


def test_precision_is_made_non_increasing_before_it_is_summed():
    # Surplus first, then two hits: precision 0, 1/2, 2/3; every recall is reached at 2/3 or better.
    given = [[box(90, score=0.9), box(0, score=0.8), box(30, score=0.7)]]
    assert mean_average_precision([[box(0), box(30)]], given).estimate == pytest.approx(2 / 3)


def test_scores_rank_boxes_across_frames():
    reference = [[box(0)], [box(0)]]
    sure_of_the_wrong_one = [[box(90, score=0.9)], [box(0, score=0.2)]]
    sure_of_the_right_one = [[box(90, score=0.2)], [box(0, score=0.9)]]
    assert mean_average_precision(reference, sure_of_the_wrong_one).estimate == pytest.approx(0.25)
    assert mean_average_precision(reference, sure_of_the_right_one).estimate == pytest.approx(0.5)


def test_classes_weigh_alike_however_rare():
    reference = [[box(40 * place) for place in range(9)] + [box(400, label="bus")]]
    assert mean_average_precision(reference, [reference[0][:9]]).estimate == pytest.approx(0.5)


def test_a_class_that_the_reference_never_shows_costs_f1_alone():
    reference, given = [[box(0)]], [[box(0), box(30, label="bus")]]
    assert mean_average_precision(reference, given).estimate == 1.0
    assert compare_boxes(reference, given).estimate == pytest.approx(2 / 3)


def test_where_nothing_is_to_be_found_only_silence_is_right():
    for measure in (mean_average_precision, compare_boxes):
        assert measure([[], []], [[], []]).estimate == 1.0
        assert measure([[], []], [[], [box(0)]]).estimate == 0.0
        assert measure([], []).lower_bound == 0.0


@pytest.mark.parametrize("measure", [compare_boxes, mean_average_precision])
def test_answers_agree_wholly_with_themselves(measure):
    reference, _ = scene()
    score, shown = measure(reference, reference), sum(map(bool, reference))
    assert (score.estimate, score.lower_bound, score.frames) == (1.0, wilson_lower(shown, shown), 200)


@pytest.mark.parametrize(("shown", "bound"), [(0, 0.0), (1, 0.27), (20, 0.881), (160, 0.983)])
def test_few_frames_with_boxes_are_certain_of_little(shown, bound):
    """Resamples of frames without a mistake have none, however few show anything."""
    reference = [[box(0)]] * shown + [[]] * (200 - shown)
    assert compare_boxes(reference, reference).lower_bound == pytest.approx(bound, abs=0.001)


@pytest.mark.parametrize("measure", [compare_boxes, mean_average_precision])
def test_bounds_lie_below_estimates_and_rise_with_frames(measure):
    few, many = measure(*scene(60)), measure(*scene(600))
    assert few.lower_bound < few.estimate
    assert many.estimate - many.lower_bound < few.estimate - few.lower_bound
    assert measure(*scene(60)) == few


def test_a_worse_detector_scores_lower_by_either_measure():
    better, worse = scene(drop=0.1, extra=0.1), scene(drop=0.4, extra=0.4)
    assert compare_boxes(*worse).estimate < compare_boxes(*better).estimate
    assert mean_average_precision(*worse).estimate < mean_average_precision(*better).estimate


def test_the_bootstrap_of_a_mean_finds_its_known_spread():
    values = np.random.default_rng(1).normal(size=400)
    bound = bootstrap_lower(400, lambda draws: draws @ values / 400)
    assert bound == pytest.approx(values.mean() - 1.645 * values.std() / 20, abs=0.02)


def test_a_resample_too_wide_for_memory_is_taken_in_several_goes():
    rows = []

    def statistic(draws):
        rows.append(len(draws))
        return draws.sum(axis=1)

    assert bootstrap_lower(3, statistic, width=160_000) == 3
    assert sum(rows) == 500
    assert max(rows) == 100


@pytest.mark.parametrize(
    ("truth", "frames"),
    [((0.97, 0.97), (100, 200)), ((0.99, 0.95), (60, 400)), ((0.9, 0.8, 0.95, 0.85, 0.7), (50, 50, 50, 50, 50))],
)
def test_the_true_balanced_agreement_lies_above_its_bound_as_often_as_is_said(truth, frames):
    rng = np.random.default_rng(0)
    hits = rng.binomial(frames, truth, size=(3000, len(truth)))
    bounds = [
        mean_lower(row / np.array(frames), [wilson_lower(h, n) for h, n in zip(row, frames, strict=True)])
        for row in hits
    ]
    assert np.mean(np.array(bounds) <= np.mean(truth)) >= 0.94
    # And not far below it: averaging the bounds lies further away in every case.
    assert np.mean(bounds) > np.mean(truth) - 0.06


def test_the_bound_of_one_class_is_its_own():
    assert mean_lower([0.9], [0.85]) == pytest.approx(0.85)
    assert mean_lower([0.9, 0.7], [0.85, 0.6]) == pytest.approx(0.8 - np.hypot(0.05, 0.1) / 2)

"""Accuracy on labels relative to the original's: against cases worked out by hand, and its bound by simulation."""

import numpy as np
import pytest

from gemel_ray.spec.answers import Box, Classified, Detected
from gemel_ray.vision.metrics import RELATIVE, relative_accuracy, relative_labels, wilson_lower, wilson_upper

LABELS = ["car"] * 10 + ["none"] * 40


def with_errors(cars, nones):
    """Labels of which the first so many of each class are wrong."""
    return ["none"] * cars + ["car"] * (10 - cars) + ["car"] * nones + ["none"] * (40 - nones)


def test_the_ratio_is_that_of_balanced_accuracies():
    found = relative_labels(LABELS, with_errors(1, 4), with_errors(2, 2))
    assert found.estimate == pytest.approx(((0.8 + 0.95) / 2) / ((0.9 + 0.9) / 2))
    assert found.lower_bound < found.estimate
    assert (found.measure, found.frames) == (RELATIVE, 50)


def test_who_answers_alike_has_all_of_it_and_frames_bound_how_sure_that_is():
    same = with_errors(1, 4)
    few, many = relative_labels(LABELS, same, same), relative_labels(LABELS * 20, same * 20, same * 20)
    assert few.estimate == many.estimate == 1
    assert 0.7 < few.lower_bound < many.lower_bound < 1


def test_answering_otherwise_than_an_original_that_errs_is_no_loss():
    truth = [Classified(label, ()) for label in LABELS]
    original = [Classified(label, ()) for label in with_errors(3, 8)]
    found = relative_accuracy(truth, original, truth)
    assert found.estimate == pytest.approx(1 / ((0.7 + 0.8) / 2))


def test_an_original_without_any_right_answer_can_be_held_against_nothing():
    assert relative_labels(["a"], ["b"], ["a"]).estimate == 0
    assert relative_labels([], [], []).estimate == 0


def test_detection_is_a_ratio_of_f1():
    def boxes(count):
        return Detected(tuple(Box("car", 1.0, 40.0 * place, 0, 10, 10) for place in range(count)))

    truth, original, merged = ([boxes(count)] * 30 for count in (4, 2, 1))
    found = relative_accuracy(truth, original, merged)
    assert found.estimate == pytest.approx((2 / 5) / (4 / 6))
    # Every resample says the same; thirty frames are no more certain than that.
    assert found.lower_bound == pytest.approx(found.estimate * wilson_lower(30, 30))


@pytest.mark.parametrize("frames", [[40, 200], [100, 400]])
@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.02), (0.03, 0.05), (0.05, 0.01)])
def test_the_true_ratio_lies_above_its_bound_as_often_as_is_said(frames, gain, loss):
    rng, accuracy = np.random.default_rng(0), 0.9
    truth = ["car"] * frames[0] + ["none"] * frames[1]
    other = {"car": "none", "none": "car"}
    below = []
    for _ in range(800):
        draws = rng.random(len(truth))
        # In four bands: right before alone, after alone, both, neither.
        lost, gained = draws < loss, (draws >= loss) & (draws < loss + gain)
        both = (draws >= loss + gain) & (draws < gain + accuracy)
        before = [label if right else other[label] for label, right in zip(truth, lost | both, strict=True)]
        after = [label if right else other[label] for label, right in zip(truth, gained | both, strict=True)]
        below.append(relative_labels(truth, before, after).lower_bound <= (accuracy - loss + gain) / accuracy)
    assert np.mean(below) >= 0.93


def test_wilsons_interval_holds_the_share():
    assert wilson_lower(5, 50) < 0.1 < wilson_upper(5, 50)
    assert wilson_upper(50, 50) == pytest.approx(1)

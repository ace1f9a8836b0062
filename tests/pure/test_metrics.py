"""Metrics against their formulas."""

import pytest
from edge_plans import camera_frame, plans
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.edge.metrics import (
    busy_fraction,
    end_to_end_accuracy,
    given_answers,
    goodput_fraction,
    prediction_error_ms,
    stale_fraction,
    standing_answers,
    swap_bytes,
    with_stale,
)
from gemel_ray.edge.simulation import play
from gemel_ray.edge.traffic import Camera, periodic
from gemel_ray.spec.actions import Answered, Arrived, Done, Dropped, Infer, Load

VERDICTS = [
    Answered(camera_frame("x", 0, slo_ms=100), 100.0),  # just in time
    Answered(camera_frame("x", 1, slo_ms=100), 100.1),
    Dropped(camera_frame("x", 2), 50.0, "newer frame"),
    Answered(camera_frame("x", 3), 10.0),
    Dropped(camera_frame("y", 4), 0.0, "too late"),
]
LOAD = Load("w", 30, predicted_ms=5.0)
INFER = Infer("x", (0,), 0, predicted_ms=10.0)


def test_goodput_counts_answers_up_to_the_deadline_among_all_that_arrived():
    assert goodput_fraction(VERDICTS) == {"x": 2 / 4, "y": 0.0}
    assert goodput_fraction([]) == {}


def test_stale_are_the_frames_without_an_answer_of_their_own():
    assert stale_fraction(VERDICTS) == {"x": 1 / 4, "y": 1.0}


def test_swap_bytes_are_those_of_loads_that_succeeded():
    done = [Done(LOAD, 5, 5), Done(LOAD, 10, 5), Done(LOAD, 15, 5, "broken"), Done(INFER, 20, 10)]
    assert swap_bytes(done) == 60


def test_the_busy_share_is_measured_inference_time_over_the_span():
    done = [Done(INFER, 20, 12.0), Done(INFER, 40, 8.0), Done(LOAD, 40, 100.0)]
    assert busy_fraction(done, 50.0) == pytest.approx(0.4)
    assert busy_fraction([], 0.0) == 0.0


def test_the_prediction_error_is_the_mean_distance_by_kind():
    done = [Done(LOAD, 0, 7.0), Done(LOAD, 0, 4.0), Done(INFER, 0, 10.5)]
    assert prediction_error_ms(done) == pytest.approx({"load": 1.5, "infer": 0.5})
    assert prediction_error_ms([]) == {}


def test_given_answers_follow_the_order_of_arrival_with_gaps_for_dropped_frames():
    frames = [camera_frame("x", number, arrived_ms=-number) for number in range(3)]
    arrivals = [Arrived(frame, frame.arrived_ms) for frame in (*frames, camera_frame("y", 9))]
    verdicts = [Answered(frames[0], 1), Dropped(frames[1], 1, "late"), Answered(frames[2], 1)]
    assert given_answers(arrivals, verdicts, {0: "car", 2: "bus", 9: "dog"}, "x") == ["bus", None, "car"]


def test_a_stale_answer_is_the_last_one_again():
    assert with_stale([None, "car", None, None, "bus", None]) == [None, "car", "car", "car", "bus", "bus"]


def test_end_to_end_accuracy_counts_stale_answers_and_nothing_before_the_first():
    def equal(seen, wanted):
        return float(seen == wanted)

    given = [None, "car", None, "bus", None]
    assert end_to_end_accuracy(given, ["car", "car", "car", "car", "bus"], equal) == pytest.approx(3 / 5)
    assert end_to_end_accuracy([], [], equal) == 1.0
    with pytest.raises(ValueError, match=r"shorter|longer"):
        end_to_end_accuracy(given, ["car"], equal)


@given(st.data())
def test_a_frames_standing_answer_is_its_own_or_the_last_one_given_when_it_was_dropped(data):
    plan = data.draw(plans())
    found = play(plan, periodic([Camera(query.name, 20, 60) for query in plan.queries], 400))
    standing = standing_answers(found.verdicts)
    stale = stale_fraction(found.verdicts)
    for query, stood in standing.items():
        own = [place for place, at in enumerate(stood) if at == place]
        assert len(own) / len(stood) == pytest.approx(1 - stale[query])
        assert all(at is None or (at in own and stood[at] == at) for at in stood)


def test_standing_answers_by_hand():
    one, two, three, other = (camera_frame(query, number) for number, query in enumerate(("q", "q", "q", "p")))
    verdicts = [Dropped(one, 1, ""), Answered(two, 2), Dropped(other, 3, ""), Dropped(three, 4, "")]
    assert standing_answers(verdicts) == {"q": [None, 1, 1], "p": [None]}

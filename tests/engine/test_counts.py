"""What an engine counts, and when recorded frames are due."""

import pytest

from gemel_ray.edge.traffic import Camera, spread
from gemel_ray.engine.replaying import arrivals
from gemel_ray.engine.status import LATENCY_WINDOW, BusyTime, Tally, percentile


@pytest.mark.parametrize(("fraction", "expected"), [(0.95, 95.0), (0.5, 50.0), (1.0, 100.0), (0.001, 1.0)])
def test_a_percentile_is_the_value_at_the_nearest_rank(fraction, expected):
    assert percentile([float(value) for value in range(1, 101)], fraction) == expected


def test_there_is_no_percentile_of_nothing():
    assert percentile([], 0.5) is None


def test_latencies_are_kept_over_a_window_only():
    tally = Tally()
    for number in range(3 * LATENCY_WINDOW):
        tally.count(None, None, float(number))
    assert tally.answered == 3 * LATENCY_WINDOW
    assert len(tally.latencies_ms) == LATENCY_WINDOW
    assert tally.status(weights_bytes=0, shared_bytes=0).p50_latency_ms == 2.5 * LATENCY_WINDOW - 0.5


def test_the_busy_fraction_is_of_the_recent_past():
    busy = BusyTime(window_ms=100)
    busy.worked(0, 50)
    assert busy.fraction(50) == 1
    assert busy.fraction(100) == pytest.approx(0.5)
    busy.worked(120, 140)
    assert busy.fraction(140) == pytest.approx(0.3)
    assert busy.fraction(1000) == 0


def test_intervals_that_left_the_window_are_forgotten():
    busy = BusyTime(window_ms=100)
    for begin in range(0, 10_000, 10):
        busy.worked(begin, begin + 5)
    assert len(busy.intervals) <= 11


def test_recorded_frames_come_when_their_cameras_send_them():
    dues = arrivals(spread([Camera("a", 10, 100), Camera("b", 5, 100)]), {"a": 3, "b": 2})
    assert [(due.at_ms, due.query, due.number) for due in dues] == [
        (0.0, "a", 0),
        (100.0, "a", 1),
        (100.0, "b", 0),
        (200.0, "a", 2),
        (300.0, "b", 1),
    ]

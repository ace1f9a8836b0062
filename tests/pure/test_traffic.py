"""Frames as cameras send them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.edge.traffic import Camera, periodic, scattered, spread

CAMERAS = st.lists(
    st.builds(Camera, st.sampled_from("xyz"), st.integers(1, 60), st.floats(0, 400), st.floats(0, 200), st.booleans()),
    min_size=1,
    max_size=4,
    unique_by=lambda camera: camera.query,
)


def test_a_camera_sends_a_frame_every_period():
    frames = periodic([Camera("x", fps=20, slo_ms=70, phase_ms=5)], duration_ms=150)
    assert [frame.arrived_ms for frame in frames] == [5, 55, 105]
    assert [frame.deadline_ms for frame in frames] == [75, 125, 175]
    assert all(frame.droppable for frame in frames)


def test_a_frame_at_the_very_end_has_not_arrived():
    assert [frame.arrived_ms for frame in periodic([Camera("x", 10, 50)], duration_ms=200)] == [0, 100]
    assert periodic([Camera("x", 10, 50)], duration_ms=0) == ()


@given(CAMERAS, st.floats(0, 500))
def test_frames_are_numbered_through_in_order_of_arrival(cameras, duration_ms):
    frames = periodic(cameras, duration_ms)
    assert [frame.frame for frame in frames] == list(range(len(frames)))
    assert all(one.arrived_ms <= other.arrived_ms for one, other in pairwise(frames))
    assert all(frame.arrived_ms < duration_ms for frame in frames)


@given(CAMERAS, st.floats(0, 500))
def test_each_camera_keeps_its_rate_its_slo_and_whether_it_may_be_dropped(cameras, duration_ms):
    frames = periodic(cameras, duration_ms)
    for camera in cameras:
        own = [frame for frame in frames if frame.query == camera.query]
        for number, frame in enumerate(own):
            assert frame.arrived_ms == camera.phase_ms + number * 1000 / camera.fps
            assert frame.deadline_ms == frame.arrived_ms + camera.slo_ms
            assert frame.droppable == camera.droppable
        assert camera.phase_ms + len(own) * 1000 / camera.fps >= duration_ms


@given(CAMERAS)
def test_spread_cameras_start_within_one_frame_period_and_are_otherwise_the_same(cameras):
    for place, (before, after) in enumerate(zip(cameras, spread(cameras), strict=True)):
        assert after.phase_ms == pytest.approx(place / len(cameras) * 1000 / before.fps)
        assert (after.query, after.fps, after.slo_ms) == (before.query, before.fps, before.slo_ms)
        assert after.droppable == before.droppable


@given(CAMERAS, st.integers(0, 20))
def test_scattered_cameras_start_within_one_frame_period_elsewhere_at_every_draw(cameras, draw):
    found, other = scattered(cameras, draw), scattered(cameras, draw + 1)
    for before, after, later in zip(cameras, found, other, strict=True):
        assert 0 <= after.phase_ms < 1000 / before.fps
        assert after.phase_ms != later.phase_ms
        assert (after.query, after.fps, after.slo_ms) == (before.query, before.fps, before.slo_ms)
        assert after.droppable == before.droppable

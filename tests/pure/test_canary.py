"""Which failed frames speak against a new release: those that the release before answered."""

import pytest

from gemel_ray.policy.canary import FrameCounts, failed_more


def failed(now, before=None, **others):
    counts = {"a": FrameCounts(*now)} | {name: FrameCounts(*found) for name, found in others.items()}
    return failed_more(counts, {} if before is None else {"a": FrameCounts(*before)})


@pytest.mark.parametrize("now", [(0, 0), (50, 0), (2, 1), (50, 1), (1000, 15)])
def test_no_frame_or_an_odd_one_is_nothing_against_it(now):
    assert failed(now) == 0


@pytest.mark.parametrize("now", [(1, 1), (2, 2), (50, 2), (50, 50), (1000, 30)])
def test_frames_that_fail_where_none_did_are(now):
    assert failed(now) == now[1]


@pytest.mark.parametrize("now", [(1, 1), (10, 6), (100, 50), (1000, 520)])
def test_frames_that_fail_as_often_as_before_are_nothing_against_it(now):
    assert failed(now, before=(200, 100)) == 0


@pytest.mark.parametrize("now", [(20, 20), (100, 80), (1000, 600)])
def test_frames_that_fail_clearly_more_often_than_before_are(now):
    assert failed(now, before=(200, 100)) == now[1]


def test_a_query_that_fails_is_not_lost_among_many_that_do_not():
    assert failed((20, 20), b=(5000, 3), c=(5000, 0)) == 20


def test_an_engine_that_counts_anew_has_counted_nothing_before():
    assert FrameCounts(30, 3).since(FrameCounts(20, 1)) == FrameCounts(10, 2)
    assert FrameCounts(5, 0).since(FrameCounts(20, 1)) == FrameCounts(5, 0)

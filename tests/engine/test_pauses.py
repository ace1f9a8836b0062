"""While something is served, full garbage collections pass over what was there before."""

import gc

import pytest

from gemel_ray.engine import pauses


class Ring:
    """Garbage that only a collection finds."""

    def __init__(self, gone):
        self.me, self.gone = self, gone

    def __del__(self):
        self.gone.append(1)


@pytest.fixture
def collector(monkeypatch):
    """Nothing set aside, nothing collected by itself, whatever other tests serve meanwhile."""
    monkeypatch.setattr(pauses, "_serving", 0)
    gc.collect()
    gc.unfreeze()
    gc.disable()
    yield
    gc.enable()


def is_collected_over(thing):
    """Whether a full collection looks at it. Counts would not do: what is set aside may still go by itself."""
    return any(other is thing for other in gc.get_objects())


@pytest.mark.usefixtures("collector")
def test_what_was_there_before_is_set_aside_until_the_last_engine_stops():
    before = Ring([])
    pauses.begin()
    since = Ring([])
    assert gc.get_freeze_count() > 10 * len(gc.get_objects())
    assert is_collected_over(since)
    assert not is_collected_over(before)
    pauses.begin()
    pauses.end()
    assert not is_collected_over(before)
    pauses.end()
    assert is_collected_over(before)
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("collector")
def test_garbage_is_not_set_aside_and_new_garbage_is_found():
    gone = []
    Ring(gone)
    pauses.begin()
    assert gone == [1]
    Ring(gone)
    gc.collect()
    pauses.end()
    assert gone == [1, 1]

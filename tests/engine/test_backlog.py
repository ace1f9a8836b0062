"""How long frames that are never dropped wait, as measured while some do."""

from gemel_ray.engine.backlog import Backlog, Waiting


def answered(backlog, *batches):
    """Batches by the time at which they end: how many frames each has."""
    for now_ms, frames in batches:
        for _ in range(frames):
            backlog.go(now_ms, is_answered=True)


def of(frames, now_ms=0.0):
    backlog = Backlog()
    for _ in range(frames):
        backlog.come(now_ms)
    return backlog


def test_nothing_is_known_before_a_batch_has_been_counted_whole():
    backlog = of(10)
    answered(backlog, (40.0, 4))
    assert (backlog.frames, backlog.frame_ms) == (6, 0.0)
    answered(backlog, (80.0, 1))
    assert backlog.frame_ms == 10.0


def test_time_without_frames_does_not_count():
    backlog = of(4)
    answered(backlog, (40.0, 4))
    backlog.come(1000.0)
    backlog.come(1000.0)
    answered(backlog, (1020.0, 1), (1040.0, 1))
    assert backlog.frame_ms == 20.0


def test_what_was_long_ago_is_forgotten():
    backlog = of(100)
    answered(backlog, *[(10.0 * turn, 1) for turn in range(1, 4)])
    answered(backlog, *[(30.0 + 500.0 * turn, 1) for turn in range(1, 8)])
    assert backlog.frame_ms == 500.0


def test_frames_that_nobody_waits_for_any_more_say_nothing_of_the_pace():
    backlog = of(10)
    for _ in range(6):
        backlog.go(5.0, is_answered=False)
    answered(backlog, (40.0, 2), (80.0, 2))
    assert (backlog.frames, backlog.frame_ms) == (0, 20.0)


def test_more_frames_wait_for_those_before_them():
    assert Waiting(pixel_bytes=0, frames=3, frame_ms=10.0).ms(2) == 50.0

"""Frames set aside for the drift monitor, and the originals it holds them against."""

import itertools
import random
import threading
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.engine.engine import Engine
from gemel_ray.engine.originals import Originals
from gemel_ray.engine.sampling import Sampler
from gemel_ray.spec.answers import Classified, FrameAnswer
from gemel_ray.spec.errors import MissingBlobError, ServingError

LABEL = Classified("car", (0.1, 0.9))


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def answered(query="a", fresh=True, release=1):
    future = Future()
    future.set_result(FrameAnswer(query, 0, LABEL, fresh, None if fresh else "too late", 1.0, release))
    return future


def sampler(clock, every_s=10.0, most_bytes=1 << 20, seed=1, queries=("a", "b")):
    made = Sampler(every_s=every_s, most_bytes=most_bytes, now_s=clock, rng=random.Random(seed))
    made.watch_over(queries)
    return made


def frame(value=0, side=4):
    return np.full((side, side, 3), value, np.uint8)


def taken(made):
    found = []
    while (sample := made.take()) is not None:
        found.append(sample)
    return found


@given(st.floats(0.05, 5), st.integers(0, 1000))
def test_frames_are_taken_at_the_rate_asked_for_and_never_much_closer(step_s, seed):
    clock = Clock()
    made, times = sampler(clock, seed=seed), []
    for _ in range(int(1000 / step_s)):
        clock.now_s += step_s
        made.offer("a", frame(), answered())
        times += [clock.now_s] * len(taken(made))
    assert 65 <= len(times) <= 110
    assert all(later - earlier >= 5 - step_s for earlier, later in itertools.pairwise(times))


def test_a_query_nobody_watches_is_not_sampled():
    clock = Clock()
    made = sampler(clock)
    clock.now_s = 100
    made.offer("c", frame(), answered("c"))
    made.watch_over(["b"])
    made.offer("a", frame(), answered())
    assert taken(made) == []
    made.offer("b", frame(), answered("b", release=7))
    (sample,) = taken(made)
    assert (sample.query, sample.answer, sample.release) == ("b", LABEL, 7)


def test_a_frame_without_a_forward_pass_is_replaced_by_the_next_one():
    clock = Clock()
    made = sampler(clock)
    clock.now_s = 100
    failed = Future()
    failed.set_exception(ServingError("lost"))
    cancelled = Future()
    cancelled.cancel()
    for spoilt in (answered(fresh=False), failed, cancelled):
        made.offer("a", frame(), spoilt)
    assert taken(made) == []
    made.offer("a", frame(9), answered())
    assert [int(sample.image[0, 0, 0]) for sample in taken(made)] == [9]


def test_the_copy_is_taken_before_the_answer_is_there():
    clock = Clock()
    made, image, pending = sampler(clock), frame(5), Future()
    clock.now_s = 100
    made.offer("a", image, pending)
    image[:] = 0
    pending.set_result(answered().result())
    assert int(taken(made)[0].image[0, 0, 0]) == 5


def test_what_is_not_taken_stays_within_its_bytes_and_the_oldest_go():
    clock = Clock()
    made = sampler(clock, most_bytes=3 * frame().nbytes)
    for value in range(10):
        clock.now_s += 100
        made.offer("a", frame(value), answered())
    assert [int(sample.image[0, 0, 0]) for sample in taken(made)] == [7, 8, 9]
    assert made.dropped == 7


def test_whoever_waits_for_a_sample_is_woken():
    clock = Clock()
    made, found = sampler(clock), []
    waiting = threading.Thread(target=lambda: found.append(made.take(60)))
    waiting.start()
    clock.now_s = 100
    made.offer("a", frame(), answered())
    waiting.join(60)
    assert found[0].query == "a"
    assert made.take(0.01) is None


def test_an_engine_offers_its_frames_and_originals_answer_them_alike(release_of, frame_of):
    made = release_of({"a": "squeezenet1_1", "b": "mobilenet_v3_small"})
    clock = Clock()
    engine = Engine(budget_bytes=1 << 26, device="cpu", threads=1)
    engine.sampler = sampler(clock)
    engine.start(made.manifest, made.path)
    try:
        clock.now_s = 100
        for query in ("a", "b", "a"):
            engine.submit(query, frame_of(3), droppable=False).result(60)
        samples = [engine.sampler.take(60), engine.sampler.take(60)]
    finally:
        engine.stop()
    assert {sample.query for sample in samples} == {"a", "b"}
    assert taken(engine.sampler) == []
    originals = Originals(made.manifest, made.path, most_bytes=1)
    for sample in samples:
        (answer,) = originals.answers(sample.query, [sample.image])
        assert answer.label == sample.answer.label
        assert answer.scores == pytest.approx(sample.answer.scores, abs=1e-5)


def test_originals_that_do_not_fit_together_take_turns(release_of, frame_of):
    made = release_of({"a": "squeezenet1_1", "b": "squeezenet1_1", "c": "squeezenet1_1"})
    originals = Originals(made.manifest, made.path, most_bytes=made.bytes_of("a", "b"))
    for query in ("a", "b", "a", "c", "a"):
        assert originals.answers(query, [frame_of(1)]) == made.direct(query, [frame_of(1)])
        assert sum(map(made.bytes_of, originals._models)) <= made.bytes_of("a", "b")
    assert list(originals._models) == ["c", "a"]


def test_what_originals_lack_is_told(release_of, frame_of):
    made = release_of({"cars": "squeezenet1_1"})
    originals = Originals(made.manifest, made.path, most_bytes=1 << 26)
    with pytest.raises(ServingError, match="did you mean 'cars'"):
        originals.answers("car", [frame_of()])

    def gone(sha):
        raise MissingBlobError(f"{sha} is gone")

    with pytest.raises(MissingBlobError):
        Originals(made.manifest, gone, most_bytes=1).answers("cars", [frame_of()])

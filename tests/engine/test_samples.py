"""Recent frames for trials: in bounded memory, however many queries and however large frames are."""

import numpy as np
import pytest

from gemel_ray.engine.samples import Samples
from gemel_ray.spec.answers import Classified

MIB = 2**20
SAID = Classified("car", (1.0,))
LARGE, SMALL = np.zeros((1080, 1920, 3), np.uint8), np.zeros((120, 160, 3), np.uint8)


def offered(queries, image, seconds=10):
    samples = Samples()
    for second in range(seconds):
        for query in queries:
            samples.offer(query, image, SAID, second * 1000.0)
    return samples


@pytest.mark.parametrize("count", [1, 3, 9, 10, 11, 50])
def test_all_queries_together_hold_no_more_than_is_said(count):
    queries = [f"q{number}" for number in range(count)]
    samples = offered(queries, LARGE)
    held = sum(sample.image.nbytes for query in queries for sample in samples.of(query))
    assert held <= 64 * MIB
    assert count > 10 or all(samples.of(query) for query in queries)


def test_what_was_kept_while_there_were_few_queries_goes_when_many_come():
    samples = offered(["first"], LARGE)
    assert len(samples.of("first")) == 8
    for number in range(9):
        samples.offer(f"q{number}", SMALL, SAID, 0.0)
    assert len(samples.of("first")) == 1
    samples.offer("q9", SMALL, SAID, 0.0)
    assert samples.of("first") == ()
    assert len(samples.of("q0")) == 1


def test_a_frame_that_shows_nothing_is_as_large_as_the_querys_own():
    samples = offered([f"q{number}" for number in range(50)], LARGE, seconds=1)
    assert samples.of("q0") == ()
    assert samples.grey("q0").shape == LARGE.shape
    assert samples.grey("new").nbytes < SMALL.nbytes

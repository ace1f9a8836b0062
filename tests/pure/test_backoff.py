"""Waits between attempts: longer after every failure, never too long, never all at the same time."""

from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.backoff import wait_s

SECONDS = st.floats(0.01, 1e5)


@given(st.integers(0, 10_000), SECONDS, SECONDS, st.floats(0, 1))
def test_a_wait_keeps_its_bounds(failures, every_s, most_s, chance):
    wait = wait_s(failures, every_s=every_s, most_s=most_s, chance=chance)
    assert 0.75 * every_s <= wait <= 1.25 * max(every_s, most_s) + 1e-9


@given(st.integers(0, 100), SECONDS, SECONDS)
def test_more_failures_never_shorten_it(failures, every_s, most_s):
    once, more = (wait_s(n, every_s=every_s, most_s=most_s, chance=0.5) for n in (failures, failures + 1))
    assert once <= more


def test_it_doubles_and_is_spread():
    assert [wait_s(n, every_s=30, most_s=600, chance=0.5) for n in range(6)] == [30, 60, 120, 240, 480, 600]
    assert (wait_s(0, every_s=30, most_s=600, chance=0), wait_s(0, every_s=30, most_s=600, chance=1)) == (22.5, 37.5)

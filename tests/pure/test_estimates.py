"""Profiles estimated from published rates: marked as such, and of the right shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.estimates import RATES, DeviceRates, ModelCost, estimate_profile, estimate_run_ms, find_rates
from gemel_ray.spec.errors import InputError

# 1e6 FLOPs a ms, 1000 bytes a ms from memory, 100 bytes a ms loaded.
PLAIN = DeviceRates(
    "plain", 1e6, 1000, 100, compute_fraction=1, memory_fraction=1, load_fraction=0.5, load_fixed_ms=2, run_fixed_ms=3
)
COSTS = st.builds(ModelCost, st.floats(0, 1e12), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))


def test_an_estimated_profile_says_so_and_names_the_device():
    profile = estimate_profile(PLAIN, {"q": ModelCost(5e6, 100, 10, 7)})
    assert (profile.device, profile.estimated) == ("plain", True)
    assert profile.load_ms(100) == 2 + 100 / 50
    assert profile.queries["q"].workspace_bytes == {1: 7, 2: 14, 4: 28, 8: 56}


def test_a_batch_takes_as_long_as_it_computes_or_moves_bytes_whichever_is_longer():
    assert estimate_run_ms(PLAIN, ModelCost(5e6, 1000, 0, 0), 2) == pytest.approx(3 + 10)
    assert estimate_run_ms(PLAIN, ModelCost(1e6, 20_000, 500, 0), 2) == pytest.approx(3 + 20 + 1)


@given(st.sampled_from(sorted(RATES)), COSTS)
def test_larger_batches_take_longer_and_never_longer_than_one_after_the_other(name, cost):
    run_ms = estimate_profile(find_rates(name), {"q": cost}).queries["q"].run_ms
    for size, twice in ((1, 2), (2, 4), (4, 8)):
        assert run_ms[size] <= run_ms[twice] <= 2 * run_ms[size] + 1e-9


def test_a_faster_device_is_faster():
    resnet50 = ModelCost(8.2e9, 102_000_000, 180_000_000, 12_000_000)
    took_ms = {name: estimate_run_ms(rates, resnet50, 4) for name, rates in RATES.items()}
    assert took_ms["h100"] < took_ms["l4"] < took_ms["t4"]
    assert 1 < took_ms["t4"] < 50


def test_an_unknown_device_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'h100'"):
        find_rates("h200")

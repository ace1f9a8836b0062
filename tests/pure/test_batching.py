"""Batch sizes: within what is offered, never worse than the smallest, near the best there is."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.policy.batching import Demand, choose_batch_sizes, expect, expected_goodput
from gemel_ray.policy.duty_cycle import Round, TurnCost, bundle


@st.composite
def nodes(draw, most_queries=4):
    """A round of queries that share nothing, what each demands, and a budget."""
    count = draw(st.integers(1, most_queries))
    weights = {f"q{place}": (f"w{place}",) for place in range(count)}
    weight_bytes = {f"w{place}": draw(st.integers(0, 20)) for place in range(count)}
    load_ms = {name: draw(st.floats(0, 30)) for name in weight_bytes}
    demands = {}
    for query in weights:
        sizes = [1, 2, 4, 8][: draw(st.integers(1, 4))]
        first_ms, more_ms = draw(st.floats(0.5, 30)), draw(st.floats(0.1, 1))
        costs = {size: TurnCost(first_ms * (1 + more_ms * (size - 1)), size * 2) for size in sizes}
        demands[query] = Demand(draw(st.floats(1, 60)), draw(st.floats(20, 400)), costs)
    least = max(weight_bytes.values()) + max(
        cost.workspace_bytes for d in demands.values() for cost in d.costs.values()
    )
    budget_bytes = max(least, 1) + draw(st.integers(0, 60))
    planned = Round(tuple(weights), bundle(weights, weight_bytes, load_ms))
    return planned, demands, {"budget_bytes": budget_bytes, "overlap": draw(st.booleans())}


@given(nodes(most_queries=8))
def test_every_query_gets_one_of_its_own_sizes_and_the_outlook_is_what_they_bring(node):
    planned, demands, options = node
    chosen = choose_batch_sizes(planned, demands, **options)
    assert chosen.sizes.keys() == demands.keys()
    assert all(size in demands[query].costs for query, size in chosen.sizes.items())
    assert expect(chosen.sizes, planned, demands, **options) == chosen


@given(nodes(most_queries=8))
def test_the_choice_is_never_worse_than_a_batch_of_one_everywhere(node):
    planned, demands, options = node
    ones = expect(dict.fromkeys(demands, 1), planned, demands, **options)
    assert choose_batch_sizes(planned, demands, **options).score >= ones.score


@settings(max_examples=60)
@given(nodes(most_queries=3))
def test_for_few_queries_the_worst_goodput_is_close_to_the_best_of_all_choices(node):
    planned, demands, options = node
    vectors = product(*(demand.costs for demand in demands.values()))
    every = (expect(dict(zip(demands, sizes, strict=True)), planned, demands, **options) for sizes in vectors)
    best = max(outlook.score[0] for outlook in every)
    assert choose_batch_sizes(planned, demands, **options).score[0] >= 0.9 * best


@given(st.integers(1, 8), st.floats(0, 100), st.floats(0, 500), st.floats(1, 60), st.floats(0, 400))
def test_expected_goodput_is_a_fraction_that_shrinks_with_run_time_and_grows_with_the_slo(
    size, run_ms, cycle_ms, fps, slo_ms
):
    goodput = expected_goodput(size, run_ms, cycle_ms, fps=fps, slo_ms=slo_ms)
    assert 0 <= goodput <= 1
    assert expected_goodput(size, run_ms + 1, cycle_ms, fps=fps, slo_ms=slo_ms) <= goodput
    assert expected_goodput(size, run_ms, cycle_ms, fps=fps, slo_ms=slo_ms + 1) >= goodput


def test_expected_goodput_by_hand():
    # A turn every 400 ms, a frame every 100 ms: a batch of two answers two of four.
    assert expected_goodput(2, 50, 400, fps=10, slo_ms=1000) == pytest.approx(0.5)
    # Only frames younger than 150 ms can be in time, whatever the batch size.
    assert expected_goodput(8, 50, 400, fps=10, slo_ms=200) == pytest.approx(150 / 400)
    assert expected_goodput(1, 300, 400, fps=10, slo_ms=200) == 0
    assert expected_goodput(4, 50, 400, fps=10, slo_ms=1000) == 1
    assert expected_goodput(1, 0, 0, fps=10, slo_ms=10) == 1


def test_batches_grow_when_swapping_dominates_the_round():
    weights = {"x": ("a",), "y": ("b",)}
    planned = Round(("x", "y"), bundle(weights, {"a": 10, "b": 10}, {"a": 100.0, "b": 100.0}))
    costs = {size: TurnCost(5.0 * size, 1) for size in (1, 2, 4, 8)}
    demands = dict.fromkeys(weights, Demand(30, 400, costs))
    tight = choose_batch_sizes(planned, demands, budget_bytes=11, overlap=False)
    assert set(tight.sizes.values()) == {8}
    roomy = choose_batch_sizes(planned, demands, budget_bytes=40, overlap=False)
    assert set(roomy.sizes.values()) == {1}
    assert min(roomy.goodput.values()) == 1


def test_fifty_queries_are_predicted_a_few_hundred_times_and_no_more(monkeypatch):
    """Which is about a second; jobs/bench_order.py measures it."""
    names = [f"q{place}" for place in range(50)]
    load_ms = {f"w{place}": 10.0 for place in range(50)}
    planned = Round(names, bundle({name: (f"w{name[1:]}",) for name in names}, dict.fromkeys(load_ms, 10), load_ms))
    costs = {size: TurnCost(5.0 * size, 1) for size in (1, 2, 4, 8)}
    asked = []
    monkeypatch.setattr(Round, "duty_cycle_ms", lambda self, costs, **options: asked.append(1) or 1000.0)
    choose_batch_sizes(planned, dict.fromkeys(names, Demand(30, 400, costs)), budget_bytes=100, overlap=True)
    assert len(asked) <= 601

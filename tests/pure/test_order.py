"""The round-robin order: never worse than the given one, and the best of all for few queries."""

import random
import statistics
from itertools import permutations

import pytest
from edge_plans import sharing
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.policy.order import choose_order, cycle_bytes
from gemel_ray.spec.errors import OverBudgetError


def moved_bytes(order, found):
    weights, weight_bytes, workspace_bytes, budget_bytes = found
    return cycle_bytes(order, weights, weight_bytes, budget_bytes=budget_bytes, workspace_bytes=workspace_bytes)


def chosen_for(found):
    weights, weight_bytes, workspace_bytes, budget_bytes = found
    return choose_order(weights, weight_bytes, budget_bytes=budget_bytes, workspace_bytes=workspace_bytes)


@settings(max_examples=50)
@given(sharing(most_queries=10))
def test_the_chosen_order_is_never_worse_than_the_given_one(found):
    order = chosen_for(found)
    assert sorted(order) == sorted(found[0])
    assert moved_bytes(order, found) <= moved_bytes(tuple(found[0]), found)
    assert order == chosen_for(found)


@settings(max_examples=40)
@given(sharing(most_queries=5))
def test_for_few_queries_no_order_moves_fewer_bytes(found):
    least = min(moved_bytes(order, found) for order in permutations(found[0]))
    assert moved_bytes(chosen_for(found), found) == least


def seven(neighbour):
    """Seven queries that each share a large weight with one other, two of which fit at a time."""
    weights = {f"q{place}": (f"own{place}", f"shared{neighbour(place)}") for place in range(7)}
    weight_bytes = {weight: 8 if "shared" in weight else 1 for needed in weights.values() for weight in needed}
    return weights, weight_bytes, {}, 10


def test_queries_that_share_weights_come_one_after_the_other():
    found = seven(lambda place: place % 3)
    order = chosen_for(found)
    # Three shared weights, each loaded once a round; the private ones pass through the rest of the memory.
    assert moved_bytes(order, found) < moved_bytes(tuple(found[0]), found)
    assert moved_bytes(order, found) == min(
        moved_bytes(("q0", *rest), found) for rest in permutations([f"q{place}" for place in range(1, 7)])
    )


def test_what_fits_whole_keeps_the_given_order():
    weights = {"x": ("a",), "y": ("b",), "z": ("a",)}
    options = {"budget_bytes": 20, "workspace_bytes": {}}
    assert choose_order(weights, {"a": 10, "b": 10}, **options) == ("x", "y", "z")


def test_twelve_queries_in_pairs_are_brought_together():
    names = [f"q{place}" for place in range(12)]
    weights = {name: (f"pair{place % 6}",) for place, name in enumerate(names)}
    weight_bytes = {f"pair{pair}": 10 for pair in range(6)}
    order = choose_order(weights, weight_bytes, budget_bytes=10, workspace_bytes={})
    assert cycle_bytes(order, weights, weight_bytes, budget_bytes=10, workspace_bytes={}) == 60
    assert cycle_bytes(names, weights, weight_bytes, budget_bytes=10, workspace_bytes={}) == 120


@given(sharing(), st.data())
def test_a_round_loads_nothing_exactly_when_everything_fits_beside_the_largest_workspace(found, data):
    weights, weight_bytes, workspace_bytes, _ = found
    needed = {weight for needed in weights.values() for weight in needed}
    all_bytes = sum(weight_bytes[weight] for weight in needed) + max(workspace_bytes.values())
    order = data.draw(st.permutations(sorted(weights)))
    options = {"workspace_bytes": workspace_bytes}
    assert cycle_bytes(order, weights, weight_bytes, budget_bytes=max(all_bytes, 1), **options) == 0


def test_a_query_too_big_by_itself_is_refused():
    with pytest.raises(OverBudgetError, match="place a query on another node"):
        choose_order({"x": ("a",), "y": ("b",), "z": ("b",)}, {"a": 9, "b": 1}, budget_bytes=8, workspace_bytes={})


def test_the_local_search_moves_little_more_than_the_best_order_does():
    """jobs/bench_order.py measures the same on larger rounds."""
    rng, gaps = random.Random(0), []
    for _ in range(25):
        found = families(rng, 6)
        weights, weight_bytes, workspace_bytes, budget_bytes = found
        order = choose_order(
            weights, weight_bytes, budget_bytes=budget_bytes, workspace_bytes=workspace_bytes, exact_queries=0
        )
        best = min(moved_bytes(("q0", *rest), found) for rest in permutations([*weights][1:]))
        gaps.append(moved_bytes(order, found) / best - 1)
    assert statistics.fmean(gaps) < 0.05


def families(rng, count):
    """Queries of three families: a heavy weight in common, a private rest; two fifths of all fit."""
    weights = {f"q{place}": (f"family{rng.randrange(3)}", f"own{place}") for place in range(count)}
    weight_bytes = {name: rng.randint(10, 40) for needed in weights.values() for name in needed}
    largest = max(sum(weight_bytes[name] for name in needed) for needed in weights.values())
    return weights, weight_bytes, {}, max(largest, 2 * sum(weight_bytes.values()) // 5)

"""The plan of one node: everything fits, costs come from the profile, and what cannot be planned is refused."""

from itertools import pairwise

import pytest
from edge_plans import blob, manifest_of, profile_of, sharing
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.policy.planning import in_order_of_use, plan_queries
from gemel_ray.policy.sharing import by_blob, models_of
from gemel_ray.spec.errors import OverBudgetError, ServingError

PAIR = {"x": ("a", "s"), "y": ("b", "s")}
PAIR_BYTES = {"a": 10, "b": 20, "s": 30}


def plan_node(manifest, profile, **options):
    holding = by_blob(models_of(manifest))
    return plan_queries(holding.queries, holding.weight_bytes, profile, **options)


def plan_pair(*, budget_bytes=100, profile=None, **options):
    manifest = manifest_of(PAIR, PAIR_BYTES)
    return plan_node(manifest, profile or profile_of(PAIR), budget_bytes=budget_bytes, **options)


def test_a_plan_holds_each_querys_weights_and_each_weights_bytes_and_load_time_once():
    plan = plan_pair(profile=profile_of(PAIR, load_bytes_per_ms=5.0, load_fixed_ms=1.0))
    assert {query.name: query.weights for query in plan.queries} == {
        "x": (blob("a"), blob("s")),
        "y": (blob("b"), blob("s")),
    }
    assert plan.weight_bytes == {blob(name): count_bytes for name, count_bytes in PAIR_BYTES.items()}
    assert plan.load_ms == {blob("a"): 3.0, blob("b"): 5.0, blob("s"): 7.0}
    assert (plan.budget_bytes, plan.overlap) == (100, True)


def test_between_measured_batch_sizes_the_next_larger_one_counts():
    profile = profile_of(PAIR, run_ms={2: 10.0, 8: 11.0}, workspace_bytes={2: 5, 8: 7})
    for query in plan_pair(profile=profile, budget_bytes=1000).queries:
        for size in range(1, query.batch_size + 1):
            assert (query.run_ms[size], query.workspace_bytes[size]) == ((10.0, 5) if size <= 2 else (11.0, 7))


def test_no_batch_size_above_the_limit_is_chosen():
    profile = profile_of(PAIR, run_ms={1: 50.0, 2: 50.0, 4: 50.0, 8: 50.0})
    assert {query.batch_size for query in plan_pair(profile=profile, max_batch=2).queries} <= {1, 2}


def test_workspace_that_does_not_grow_with_the_batch_counts_at_its_most():
    # A batch of two would take more than a batch of four, and a batch of four may turn out to be one of two.
    profile = profile_of(PAIR, run_ms={1: 50.0, 2: 50.0, 4: 50.0}, workspace_bytes={1: 1, 2: 50, 4: 10})
    assert {query.batch_size for query in plan_pair(profile=profile, budget_bytes=60).queries} == {1}


def test_a_query_that_does_not_fit_alone_is_refused_with_its_bytes():
    profile = profile_of(PAIR, run_ms={1: 10.0}, workspace_bytes={1: 7})
    with pytest.raises(OverBudgetError, match=r"'y' alone needs 57 bytes \(50 of weights, 7 of workspace"):
        plan_pair(profile=profile, budget_bytes=56)


def test_a_profile_that_lacks_a_query_is_refused_with_the_nearest_name():
    with pytest.raises(ServingError, match=r"lacks query 'x' .*profile this release on this device"):
        plan_pair(profile=profile_of(["y", "xx"]))


@settings(max_examples=50)
@given(sharing(most_queries=8), st.booleans(), st.integers(0, 6))
def test_every_batch_up_to_the_planned_one_fits_and_the_scheduler_takes_the_plan(found, overlap, per_frame_bytes):
    weights, weight_bytes, _, budget_bytes = found
    workspace_bytes = {size: size * per_frame_bytes for size in (1, 2, 4, 8)}
    profile = profile_of(
        weights, run_ms={size: 5.0 + size for size in workspace_bytes}, workspace_bytes=workspace_bytes
    )
    budget_bytes += per_frame_bytes
    plan = plan_node(manifest_of(weights, weight_bytes), profile, budget_bytes=budget_bytes, overlap=overlap)
    assert sorted(query.name for query in plan.queries) == sorted(weights)
    for query in plan.queries:
        own_bytes = sum(plan.weight_bytes[weight] for weight in query.weights)
        for size in range(1, query.batch_size + 1):
            assert own_bytes + query.workspace_bytes[size] <= budget_bytes
    assert Scheduler(plan).pending == 0


def test_fifty_queries_are_planned():
    weights = {f"q{place:02}": (f"own{place}", f"family{place % 7}") for place in range(50)}
    weight_bytes = {w: 40 if w.startswith("own") else 300 for needed in weights.values() for w in needed}
    plan = plan_node(manifest_of(weights, weight_bytes), profile_of(weights), budget_bytes=700)
    turns = [query.name for query in plan.queries]
    assert sorted(turns) == sorted(weights)
    # Families come together, so that each one's common weight is loaded about once a round.
    changes = sum(int(one[1:]) % 7 != int(other[1:]) % 7 for one, other in pairwise(turns))
    assert changes == 6


def test_weights_are_listed_in_the_order_of_use_and_after_which_part_of_a_run():
    manifest = manifest_of({"q": ["a", "b", "c"]}, {"a": 1, "b": 2, "c": 3})
    profile = profile_of(["q"])
    watched = profile.queries["q"].model_copy(update={"first_use": {"layer0": 0.7, "layer1": 0.0, "layer2": 0.3}})
    profile = profile.model_copy(update={"queries": {"q": watched}})
    plan = in_order_of_use(plan_node(manifest, profile, budget_bytes=100), manifest, profile)
    (query,) = plan.queries
    assert query.weights == (blob("b"), blob("c"), blob("a"))
    assert query.needed_after == {blob("b"): 0.0, blob("c"): 0.3, blob("a"): 0.7}


def test_a_weight_of_two_places_is_needed_at_the_earlier_one_and_what_nobody_watched_from_the_start():
    manifest = manifest_of({"q": ["a", "b", "a"]}, {"a": 1, "b": 2})
    profile = profile_of(["q"])
    watched = profile.queries["q"].model_copy(update={"first_use": {"layer0": 0.6, "layer2": 0.2}})
    profile = profile.model_copy(update={"queries": {"q": watched}})
    (query,) = in_order_of_use(plan_node(manifest, profile, budget_bytes=100), manifest, profile).queries
    assert query.needed_after == {blob("a"): 0.2, blob("b"): 0.0}


# In the order of a run: two layers that others share, by themselves and together with more, and two private pieces.
DIVIDED = {"one": "one", "..two.conv": "common", "": "rest", ".four": "more"}
WATCHED = {"one": 0.1, "two.conv": 0.2, "two.norm": 0.3, "three.conv": 0.4, "four.0": 0.6, "four.1": 0.7}


def needed_after(first_use):
    manifest = manifest_of({"q": DIVIDED.values()}, dict.fromkeys(DIVIDED.values(), 1))
    released = manifest.queries["q"].model_copy(update={"weights": {key: blob(w) for key, w in DIVIDED.items()}})
    manifest = manifest.model_copy(update={"queries": {"q": released}})
    profile = profile_of(["q"])
    watched = profile.queries["q"].model_copy(update={"first_use": first_use})
    profile = profile.model_copy(update={"queries": {"q": watched}})
    (query,) = in_order_of_use(plan_node(manifest, profile, budget_bytes=100), manifest, profile).queries
    return [query.needed_after[blob(weight)] for weight in DIVIDED.values()]


def test_what_was_watched_of_modules_holds_for_whatever_weight_sets_a_release_makes_of_them():
    assert needed_after(WATCHED) == [0.1, 0.2, 0.3, 0.6]
    # As a profile of the whole model in one weight set says it.
    assert needed_after({"": 0.0}) == [0.0, 0.0, 0.0, 0.0]
    assert needed_after({key: 0.5 for key in DIVIDED}) == [0.5, 0.5, 0.5, 0.5]

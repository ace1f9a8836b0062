"""Policies on one node: what each of them shares, evicts and hides, and that all of them serve."""

import pytest
from edge_plans import blob, manifest_of, profile_of
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.edge.traffic import Camera, periodic
from gemel_ray.policy.baselines import POLICIES, find_policy, plan_policy, variants
from gemel_ray.policy.sharing import (
    ModelLayer,
    ServedModel,
    as_released,
    common_stems,
    in_pieces,
    merged_layers,
    models_of,
    whole_models,
)
from gemel_ray.spec.errors import InputError, OverBudgetError

MIB = 1 << 20


def model(*layers, fps=10, slo_ms=200):
    """Layers as (MiB, merged copy, original)."""
    return ServedModel(
        tuple(ModelLayer(size * MIB, merged, original) for size, merged, original in layers), fps, slo_ms
    )


# x and y share a stem and a heavy end, not the middle; y and z are bit-identical in the middle; z has no shared stem.
MODELS = {
    "x": model((10, "stem", "x0"), (20, "x1", "x1"), (30, "end", "x2")),
    "y": model((10, "stem", "y0"), (20, "y1", "same"), (30, "end", "y2")),
    "z": model((10, "z0", "z0"), (20, "z1", "same"), (30, "end", "z2")),
}

# Policy: MiB that it holds in all, what it evicts, whether loads overlap, the largest batch.
EXPECTED = {
    "ours_merged": (110, "furthest_next_use", True, 8),
    "ours_released": (110, "furthest_next_use", True, 8),
    "ours": (180, "furthest_next_use", True, 8),
    "time_space_merged": (110, "most_recently_used", True, 8),
    "time_space": (180, "most_recently_used", True, 8),
    "model_lru": (180, "least_recently_used", False, 1),
    "dedup": (160, "furthest_next_use", True, 8),
    "stem": (170, "furthest_next_use", True, 8),
    "everything_resident": (180, "furthest_next_use", True, 8),
}


def profile(**options):
    return profile_of(MODELS, load_bytes_per_ms=MIB, **options)


def plan(policy, budget_mib=90, **options):
    return plan_policy(find_policy(policy), MODELS, profile(**options), budget_bytes=budget_mib * MIB)


def test_every_policy_has_its_row_here():
    assert EXPECTED.keys() == POLICIES.keys()


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_shares_evicts_and_overlaps_as_it_says(name):
    held_mib, eviction, overlap, most = EXPECTED[name]
    planned = plan(name, run_ms={1: 90.0, 2: 91.0, 4: 92.0, 8: 93.0})
    assert sum(planned.weight_bytes.values()) == held_mib * MIB
    assert (planned.eviction, planned.overlap) == (eviction, overlap)
    assert all(query.batch_size <= most for query in planned.queries)
    assert POLICIES[name].about


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_answers_every_frame_that_must_not_be_dropped(name):
    planned = plan(name)
    frames = periodic([Camera(query, 10, 50, droppable=False) for query in MODELS], duration_ms=500)
    trace = Trace(SimulatedDevice(planned, frames))
    run(Scheduler(planned), trace, trace.hear)
    assert len(trace.verdicts) == len(frames) == 15
    assert trace.peak_bytes <= planned.budget_bytes


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "everything_resident"])
def test_each_policy_keeps_to_the_budget_it_is_given(name):
    assert plan(name, budget_mib=70).budget_bytes == 70 * MIB
    with pytest.raises(OverBudgetError, match="alone needs"):
        plan(name, budget_mib=59)


def test_everything_resident_takes_the_memory_it_needs():
    planned = plan("everything_resident", budget_mib=1, workspace_bytes={1: 5, 2: 7, 4: 9})
    assert planned.budget_bytes == 180 * MIB + 9


def test_an_unknown_policy_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'time_space'"):
        find_policy("timespace")


def test_a_whole_model_is_one_weight_set():
    assert {name: query.weights for name, query in whole_models(MODELS).queries.items()} == {
        name: (name,) for name in MODELS
    }


def test_a_stem_ends_at_the_first_layer_that_nobody_shares():
    holding = common_stems(MODELS)
    shared = set(holding.queries["x"].weights) & set(holding.queries["y"].weights)
    assert sum(holding.weight_bytes[weight] for weight in shared) == 10 * MIB
    assert not set(holding.queries["z"].weights) & set(holding.queries["x"].weights)


def test_layers_of_the_same_queries_are_put_together_until_a_piece_is_large_enough():
    many = {"x": model(*((1, f"l{depth}", f"l{depth}") for depth in range(20)))}
    copies = {"x": [f"l{depth}" for depth in range(20)]}
    assert list(in_pieces(many, copies, 8 * MIB).weight_bytes.values()) == [8 * MIB, 8 * MIB, 4 * MIB]
    assert list(in_pieces(many, copies, 1).weight_bytes.values()) == [MIB] * 20


def test_released_weight_sets_are_shared_layers_and_pieces_of_each_private_rest():
    private = [(1, f"x{depth}", f"x{depth}") for depth in range(18)]
    models = {
        "x": model(*private, (2, "both", "x-both"), (3, "twice", "x1"), (3, "twice", "x2")),
        "y": model((2, "both", "y-both"), (1, "head", "head")),
    }
    held = as_released(models).weight_bytes
    assert {name: size // MIB for name, size in held.items()} == {
        "x/": 16, "x/.x16": 2, "both": 2, "twice": 3, "y/": 1,
    }  # fmt: skip


def test_what_the_same_models_share_at_the_same_paths_is_released_in_pieces():
    def layers(own, *more):
        common = [ModelLayer(5 * MIB, f"c{depth}", f"{own}{depth}", path=f"l{depth}") for depth in range(5)]
        return ServedModel((*common, ModelLayer(MIB, own, own, path="head"), *more), 10.0, 100.0)

    moved = [ModelLayer(MIB, "moved", f"m{place}", path=f"m{place}") for place in range(2)]
    held = as_released({"x": layers("x", moved[0]), "y": layers("y", moved[1]), "z": model((7, "z", "z"))}).weight_bytes
    assert {name: size // MIB for name, size in held.items()} == {
        "x+y/..c0": 20, "x+y/c4": 5, "x/": 1, "y/": 1, "z/": 7, "moved": 1,
    }  # fmt: skip


def test_a_layer_repeated_within_a_model_is_held_once():
    twice = {"x": model((10, "same", "x0"), (10, "same", "x1"), (5, "head", "x2"))}
    assert merged_layers(twice).total_bytes == 15 * MIB
    assert whole_models(twice).total_bytes == 25 * MIB


@st.composite
def any_models(draw):
    copies = {f"c{place}": draw(st.integers(0, 12)) for place in range(6)}
    return {
        f"q{place}": model(*((copies[copy], copy, copy) for copy in draw(st.lists(st.sampled_from(sorted(copies))))))
        for place in range(draw(st.integers(1, 5)))
    }


@given(any_models(), st.sampled_from([1, 8 * MIB, 1 << 40]))
def test_pieces_hold_every_copy_once_and_each_query_gets_all_of_its_own_and_no_others(models, piece_bytes):
    copies = {name: [layer.merged for layer in each.layers] for name, each in models.items()}
    holding = in_pieces(models, copies, piece_bytes)
    sizes = {layer.merged: layer.bytes for each in models.values() for layer in each.layers}
    assert holding.total_bytes == sum(sizes.values())
    for name, query in holding.queries.items():
        assert sum(holding.weight_bytes[weight] for weight in query.weights) == sum(sizes[c] for c in {*copies[name]})


def test_a_release_is_held_as_it_is_stored():
    weights = {"x": ("a", "s"), "y": ("b", "s")}
    manifest = manifest_of(weights, {"a": 1, "b": 2, "s": 4}, fps=7, slo_ms=70)
    models = models_of(manifest)
    assert [(each.fps, each.slo_ms) for each in models.values()] == [(7, 70)] * 2
    holding = as_released(models)
    assert sorted(holding.weight_bytes.values()) == [1, 2, 4]
    assert {layer.merged for layer in models["x"].layers} == {blob("a"), blob("s")}
    assert whole_models(models).total_bytes == 1 + 2 + 4 + 4


def test_an_engine_may_choose_among_variants_of_ours_and_runs_baselines_as_they_are():
    models = models_of(manifest_of({"x": ("a", "s"), "y": ("b", "s")}, {"a": 10, "b": 20, "s": 40}))
    profile = profile_of(models)
    own, *others = variants(POLICIES["ours_released"], models, profile, budget_bytes=65)
    assert own == plan_policy(POLICIES["ours_released"], models, profile, budget_bytes=65)
    assert {each.eviction for each in others} == {"furthest_next_use", "most_recently_used"}
    assert {each.work_conserving for each in others} == {True, False}
    baseline = variants(POLICIES["time_space"], models, profile, budget_bytes=65)
    assert {(each.eviction, each.work_conserving) for each in baseline} == {("most_recently_used", False)}

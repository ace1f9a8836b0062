"""What models cost by their form: of all measurements together, as they are served, and whatever is shared later."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from edge_plans import manifest_of, profile_of
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gemel_ray.engine.engine import Engine
from gemel_ray.engine.kinds import KindCosts
from gemel_ray.engine.profiling import Measured
from gemel_ray.spec.plan import Contention
from gemel_ray.spec.profile import QueryProfile

MB = 10**6
SMALL = manifest_of({"q": ["w"]}, {"w": 1})
LARGE_LOADS = tuple((count * MB, 0.1 + count / 5) for count in (1, 40, 85))
LARGE = Measured("a box", {"q": QueryProfile(run_ms={1: 30.0}, workspace_bytes={1: 9})}, LARGE_LOADS,
                 (Contention(2.0, 1.5), Contention(2.2, 1.7)))  # fmt: skip
# Of a form of 20 kB: it loads in no time, which is all fixed, and computes for too short a time to be slowed down.
TINY = Measured("a box", {}, ((20_000, 0.1),), (Contention(),))


def known(*measured):
    costs = KindCosts()
    for found in measured:
        costs.add(SMALL, found)
    return costs.profile(SMALL)


@pytest.mark.parametrize("measured", [(LARGE, TINY), (TINY, LARGE)], ids=["large first", "tiny first"])
def test_a_tiny_form_measured_by_itself_does_not_say_how_large_ones_load(measured):
    found = known(*measured)
    assert found.load_ms(85 * MB) == pytest.approx(17.1, rel=0.05)
    assert (found.run_slowdown, found.load_slowdown) == (2.0, 1.5)


def test_what_was_measured_before_a_restart_counts_with_what_is_measured_after_it():
    before, after = KindCosts(), KindCosts()
    before.add(SMALL, LARGE)
    after.recall(before.dump(), "a box")
    assert after.profile(SMALL) == before.profile(SMALL)
    after.add(SMALL, TINY)
    assert after.profile(SMALL) == known(LARGE, TINY)


def test_costs_written_without_what_they_were_fitted_to_are_not_taken_up():
    costs, lacking = KindCosts(), json.loads(known_text())
    del lacking["loads"]
    with pytest.raises(KeyError):
        costs.recall(json.dumps(lacking), "a box")
    assert costs.unknown(SMALL) == ("q",)


def known_text():
    costs = KindCosts()
    costs.add(SMALL, LARGE)
    return costs.dump()


@pytest.mark.parametrize(("estimated", "device"), [(True, "a box"), (False, "invented")])
def test_estimated_rates_give_way_to_measured_ones_and_others_that_were_given_hold(estimated, device):
    costs = KindCosts()
    costs.learn(SMALL, profile_of(["q"]).model_copy(update={"device": "invented", "estimated": estimated}))
    costs.add(SMALL, LARGE)
    assert costs.profile(SMALL).device == device


@pytest.fixture
def threads_seen():
    """Of whatever model computes, with how many threads."""
    seen = set()
    hook = register_module_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    yield seen
    hook.remove()


def test_models_are_measured_with_the_threads_that_they_are_served_with(release_of, threads_seen):
    made = release_of({"a": "resnet18"})
    engine = Engine(budget_bytes=10**9, device="cpu", threads=2)

    def measure():
        # As Ray leaves a process that books less than one CPU.
        torch.set_num_threads(1)
        engine.measure(made.manifest, made.path)
        torch.set_num_threads(1)

    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(measure).result()
    assert threads_seen == {2}
    assert engine.costs.profile(made.manifest).device == engine.device_name
    assert "2 threads" in engine.device_name


def test_costs_of_originals_say_when_a_merged_release_needs_which_layer_and_what_a_small_load_takes(release_of):
    originals = release_of({"a": "resnet18", "b": "resnet18"})
    layers = [path for path, module in originals.models["a"].named_modules() if isinstance(module, nn.Conv2d)]
    merged = release_of({"a": "resnet18", "b": "resnet18"}, [[("a", path), ("b", path)] for path in layers])
    engine = Engine(budget_bytes=10**9, device="cpu", threads=1)
    engine.start(originals.manifest, originals.path)
    try:
        fitted_to = json.loads(engine.costs.dump())["loads"]
        engine.roll(merged.manifest.model_copy(update={"release": 2}), merged.path)
        (query,) = (query for query in engine.plan.queries if query.name == "a")
    finally:
        engine.stop()
    weights = merged.manifest.queries["a"].weights
    main_path = [path for path in layers if "downsample" not in path]
    at = [query.needed_after[weights[path]] for path in main_path]
    assert all(one < other for one, other in pairwise(at))
    # All normalisation, from behind the first convolution on.
    assert at[0] < query.needed_after[weights[""]] <= at[1]
    sizes = [count_bytes for count_bytes, _ in fitted_to]
    assert min(sizes) < 1000 < 100_000 < max(sizes)
    assert len(sizes) >= 5

"""Queries of one feed with the same first layers compute them once a frame, and answer as if they had not."""

import gc
import weakref
from dataclasses import dataclass, replace

import pytest
from edge_plans import profile_of
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gemel_ray.engine.blobs import open_blobs, read_tensor
from gemel_ray.engine.engine import Engine
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.stems import StemSharing
from gemel_ray.spec.errors import StoreError
from gemel_ray.spec.profile import DeviceProfile, QueryProfile

WAIT_S = 120
AMPLE_BYTES = 1 << 30
QUERIES = {
    "cars": "frozen_stems:resnet",
    "people": "frozen_stems:resnet",
    "bikes": "frozen_stems:mobilenet",
    "dogs": "frozen_stems:mobilenet",
    "signs": "frozen_stems:resnet",
}
# Of these models nothing but the first convolution is alike: normalisation was trained.
OPTIONS = {"signs": {"frozen": "conv1"}}
# Merged: one copy of the frozen convolutions. The mobilenets' are alike and stored twice.
SHARED = [[("cars", path), ("people", path)] for path in ("conv1", "layer1.0.conv1", "layer1.1.conv2")]
# One module of each stem, and one behind it.
FIRST = {"cars": "conv1", "people": "conv1", "bikes": "features.0.0", "dogs": "features.0.0", "signs": "conv1"}


@dataclass
class Bench:
    """Resident models, and how often a module of each was called."""

    made: object
    skeletons: dict
    residence: Residence
    calls: dict

    def ask(self, query, *frames):
        """What the model answers to one batch."""
        return self.skeletons[query].answers(frames, self.residence)

    def plain(self, query, *frames):
        """The same, computed by itself."""
        stemmed, self.skeletons[query].stemmed = self.skeletons[query].stemmed, None
        calls = dict(self.calls)
        try:
            return self.ask(query, *frames)
        finally:
            self.skeletons[query].stemmed = stemmed
            self.calls.update(calls)


@pytest.fixture(scope="module")
def made(tmp_path_factory, release_into):
    return release_into(tmp_path_factory.mktemp("stems"), QUERIES, SHARED, options=OPTIONS)


@pytest.fixture
def sharing(made, device):
    """Builds a bench whose stems may take so many bytes."""

    def build(most_bytes=AMPLE_BYTES, manifest=made.manifest):
        blobs, residence = open_blobs(manifest, made.path), Residence(device)
        for sha, blob in blobs.items():
            residence.load(sha, blob, blob.data_bytes)
        skeletons = build_skeletons(manifest, blobs, device, allow_factories=True)
        stems = StemSharing()
        stems.learn(manifest, skeletons)
        bench = Bench(made, skeletons, residence, dict.fromkeys(QUERIES, 0))
        bench.kept_bytes = stems.share(manifest, skeletons, blobs, most_bytes)
        for query, skeleton in skeletons.items():
            skeleton.model.get_submodule(FIRST[query]).register_forward_pre_hook(
                lambda *_, query=query: bench.calls.update({query: bench.calls[query] + 1})
            )
        return bench

    return build


@pytest.fixture
def bench(sharing, frame_of):
    """A bench whose models have computed once, which shows when each needs its weights and is never a stem's."""
    bench = sharing()
    for query in QUERIES:
        bench.ask(query, frame_of(99))
    bench.calls.update(dict.fromkeys(QUERIES, 0))
    return bench


@pytest.mark.parametrize(("first", "second"), [("cars", "people"), ("bikes", "dogs"), ("dogs", "bikes")])
@pytest.mark.parametrize("count", [1, 3])
def test_a_stem_runs_once_a_batch_and_answers_are_the_same_bit_for_bit(bench, frame_of, first, second, count):
    for seed in (0, 10):
        frames = [frame_of(seed + place) for place in range(count)]
        expected = {query: bench.plain(query, *frames) for query in (first, second)}
        assert bench.ask(first, *frames) == expected[first]
        assert bench.ask(second, *[frame.copy() for frame in frames]) == expected[second]
        # Again, since what is kept must not have changed while the rest computed in place.
        assert bench.ask(first, *frames) == expected[first]
    assert (bench.calls[first], bench.calls[second]) == (2, 0)


def test_other_frames_and_other_batches_of_the_same_ones_are_computed(bench, frame_of):
    one, other = frame_of(1), frame_of(2)
    bench.ask("cars", one, other)
    for frames in ([one], [other, one], [one, one], [other]):
        assert bench.ask("people", *frames) == bench.plain("people", *frames)
    assert bench.calls["people"] == 4


def test_one_convolution_is_not_worth_it_where_normalisation_is_private(bench):
    assert bench.skeletons["signs"].stemmed is None
    assert all(bench.skeletons[query].stemmed for query in ("cars", "people", "bikes", "dogs"))


def test_queries_of_different_feeds_have_nothing_in_common(sharing, made, frame_of):
    asked = made.manifest.queries
    moved = asked["people"].model_copy(update={"query": asked["people"].query.model_copy(update={"feed": "other"})})
    apart = made.manifest.model_copy(update={"queries": {"cars": asked["cars"], "people": moved}})
    bench = sharing(manifest=apart)
    assert bench.kept_bytes == 0
    assert bench.skeletons["people"].stemmed is None


def test_without_memory_to_keep_them_there_are_no_stems(sharing):
    bench = sharing(most_bytes=1000)
    assert bench.kept_bytes == 0
    assert all(skeleton.stemmed is None for skeleton in bench.skeletons.values())


def test_a_missing_weight_is_waited_for_although_the_model_is_cut_in_two(bench, made, frame_of):
    late = made.manifest.queries["people"].weights[""]
    blob, asked = open_blobs(made.manifest, made.path)[late], []
    expected = bench.plain("people", frame_of(4))
    bench.residence.evict(late)

    def arrive(weight):
        asked.append(weight)
        bench.residence.load(weight, blob, blob.data_bytes)

    bench.ask("cars", frame_of(4))
    assert bench.skeletons["people"].answers([frame_of(4)], bench.residence, arrive) == expected
    assert asked == [late]


def test_a_tensor_is_read_from_the_file_as_it_is_stored(made):
    sha = made.manifest.queries["cars"].weights[""]
    blob, state = open_blobs(made.manifest, made.path)[sha], made.models["cars"].state_dict()
    for name in ("bn1.running_mean", "fc.bias", "layer2.0.conv1.weight"):
        assert read_tensor(blob, name) == state[name].numpy().tobytes()


@pytest.fixture
def first_layers():
    """Calls of convolutions that see three channels, whichever model's."""
    calls = []
    hook = register_module_forward_pre_hook(
        lambda module, _: calls.append(module) if isinstance(module, nn.Conv2d) and module.in_channels == 3 else None
    )
    yield calls
    hook.remove()


def test_an_engine_sets_memory_aside_and_shares_within_its_budget(made, frame_of, device, first_layers):
    query = QueryProfile(run_ms={1: 5.0}, workspace_bytes={1: 2**21})
    profile = DeviceProfile(
        device="invented",
        estimated=True,
        load_fixed_ms=0.1,
        load_bytes_per_ms=1e6,
        queries=dict.fromkeys(QUERIES, query),
    )
    engine = Engine(budget_bytes=2 * made.manifest.bytes_after, device=str(device), threads=1, allow_factories=True)
    engine.start(made.manifest, made.path, profile)
    try:
        for seed in range(3):
            first_layers.clear()
            futures = {query: engine.submit(query, frame_of(seed), droppable=False) for query in QUERIES}
            given = {query: future.result(timeout=WAIT_S).answer for query, future in futures.items()}
            # The first pass of a model shows when it needs its weights; from then on two pairs share a stem.
            assert len(first_layers) == (3 if seed else 5)
            for query in QUERIES:
                (expected,) = made.direct(query, [frame_of(seed)])
                assert given[query].scores == pytest.approx(expected.scores, abs=1e-4)
        status = engine.status()
        engine.roll(made.manifest.model_copy(update={"release": 2}), made.path)
        asked = {query: engine.submit(query, frame_of(7), droppable=False) for query in ("cars", "people")}
        for query, future in asked.items():
            (expected,) = made.direct(query, [frame_of(7)])
            assert future.result(timeout=WAIT_S).answer.scores == pytest.approx(expected.scores, abs=1e-4)
    finally:
        engine.stop()
    assert 0 < engine.kept_bytes <= status.budget_bytes // 20
    assert status.workspace_bytes == engine.kept_bytes
    assert status.peak_bytes <= status.budget_bytes


@pytest.fixture
def pair(made, device):
    """An engine that serves two queries with one stem, and the release to come."""
    queries = {name: made.manifest.queries[name] for name in ("cars", "people")}
    first = made.manifest.model_copy(update={"queries": queries})
    profile = profile_of(queries, run_ms={1: 5.0}, workspace_bytes={1: 2**21}, load_bytes_per_ms=1e6)
    engine = Engine(budget_bytes=2 * made.manifest.bytes_after, device=str(device), threads=1, allow_factories=True)
    engine.start(first, made.path, profile)
    yield engine, with_other_last_layers(made, first)
    engine.stop()


def with_other_last_layers(made, manifest):
    """The next release, in which every private blob is another one and the stems are as before."""
    queries, blobs = {}, dict(manifest.blobs)
    for name, released in manifest.queries.items():
        state = load_file(made.path(released.weights[""]))
        sha, info = made.put(state | {"fc.weight": state["fc.weight"] * 1.001})
        queries[name] = released.model_copy(update={"weights": {**released.weights, "": sha}})
        blobs[sha] = info
    return manifest.model_copy(update={"release": 2, "queries": queries, "blobs": blobs})


def kept_by(engine, query):
    """Where the newest batch of a query's stem lies."""
    return engine._running().device.skeleton(query, engine.status().release).stemmed._kept


def ask(engine, frame):
    futures = [engine.submit(query, frame, droppable=False) for query in ("cars", "people")]
    return [future.result(timeout=WAIT_S) for future in futures]


def test_what_old_stems_kept_is_given_back_with_the_release_before_whether_garbage_is_collected_or_not(pair, made):
    engine, following = pair
    before = weakref.ref(kept_by(engine, "cars"))
    gc.disable()
    try:
        engine.roll(following, made.path)
        assert before() is None
    finally:
        gc.enable()
    assert kept_by(engine, "cars") is kept_by(engine, "people")


def test_no_file_is_asked_for_once_a_release_is_served(pair, made):
    engine, following = pair

    def fetch(sha):
        if engine.status().release == 2:
            raise StoreError("the store is away")
        return made.path(sha)

    assert engine.roll(following, fetch) == ("cars", "people")
    assert kept_by(engine, "cars") is kept_by(engine, "people")


class LateSharing(StemSharing):
    """The disk fails just before stems are settled."""

    def share(self, manifest, skeletons, blobs, most_bytes):
        lost = {sha: replace(blob, path=blob.path.with_suffix(".gone")) for sha, blob in blobs.items()}
        return super().share(manifest, skeletons, lost, most_bytes)


def test_a_release_whose_stems_cannot_be_settled_is_served_without_them(pair, made, frame_of, caplog):
    engine, following = pair
    late = LateSharing()
    late._forms, engine._stems = engine._stems._forms, late
    assert engine.roll(following, made.path) == ("cars", "people")
    assert "release 2 shares no stems" in caplog.text
    assert engine._running().device.skeleton("cars", 2).stemmed is None
    assert [given.release for given in ask(engine, frame_of(1))] == [2, 2]

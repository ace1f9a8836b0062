"""A new release in a running engine, under constant load: whole, or not at all."""

import threading
from concurrent.futures import wait

import pytest
import torch
from safetensors.torch import load, save
from tiny_release import CLASSIFIERS, noise, publish_tiny_release, publish_variant

from gemel_ray.engine.engine import Engine
from gemel_ray.policy.transition import changed_queries, restricted
from gemel_ray.spec.errors import CorruptBlobError, MissingBlobError, OverBudgetError, ServingError
from gemel_ray.spec.release import BlobInfo
from gemel_ray.weights.cache import Fetched, LocalCache
from gemel_ray.weights.maintenance import revert_queries
from gemel_ray.weights.store import open_store

WAIT_S = 120
FRAMES = [noise(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Three releases of one store: the second has other weights everywhere, the third two of the first's models."""
    folder = tmp_path_factory.mktemp("rollout") / "store"
    first = publish_tiny_release(folder)
    second = publish_variant(first)
    store = open_store(folder)
    return {1: first, 2: second}, store, revert_queries(store, ["north_cars", "south_people"])


@pytest.fixture
def cache(releases, tmp_path):
    return LocalCache(releases[1], tmp_path / "cache")


@pytest.fixture
def engine(releases, cache):
    """Serves the first release in a memory that holds some of its models, never all."""
    made = releases[0][1]
    cache.bring(made.manifest)
    engine = Engine(budget_bytes=int(0.8 * made.manifest.bytes_after), device="cpu", threads=1)
    engine.start(made.manifest, cache.fetch)
    yield engine
    engine.stop()


class Load:
    """Asks all queries again and again, two frames of each at a time, until the block ends."""

    def __init__(self, engine, queries=CLASSIFIERS):
        self.answers, self.problems = [], []
        self._engine, self._queries, self._ended = engine, queries, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _ask(self):
        turn = 0
        while not self._ended.is_set():
            asked = [(q, turn % 3, self._engine.submit(q, FRAMES[turn % 3], droppable=False)) for q in self._queries]
            wait([future for *_, future in asked], WAIT_S)
            self.answers += [(query, frame, future.result(timeout=0)) for query, frame, future in asked]
            turn += 1

    def so_many(self, more):
        until, pause = len(self.answers) + more, threading.Event()
        while len(self.answers) < until:
            assert self._thread.is_alive()
            pause.wait(0.005)


def expectations(releases):
    """By release, query and frame: what a direct forward pass says."""
    made, _, third = releases
    known = {(1, q): [a.scores for a in made[1].direct(q, FRAMES)] for q in CLASSIFIERS}
    known |= {(2, q): [a.scores for a in made[2].direct(q, FRAMES)] for q in CLASSIFIERS}
    source = {q: 1 if q in ("north_cars", "south_people") else 2 for q in CLASSIFIERS}
    return known | {(third.release, q): known[source[q], q] for q in source}


def assert_right(releases, load):
    expected = expectations(releases)
    for query, frame, given in load.answers:
        assert given.fresh, given.reason
        wanted = expected[given.release, query][frame]
        assert given.answer.scores == pytest.approx(wanted, abs=1e-4), (query, given.release)


def test_a_release_and_back_under_load_without_a_wrong_or_failed_answer(releases, engine, cache):
    _, store, third = releases
    with Load(engine) as load:
        load.so_many(8)
        for number in (2, third.release, 1, 2, 1):
            manifest = store.manifest(number)
            cache.bring(manifest)
            changed = engine.roll(manifest, cache.fetch)
            assert changed
            assert engine.status().release == number
            load.so_many(8)
    assert_right(releases, load)
    assert {given.release for *_, given in load.answers} == {1, 2, third.release}
    status = engine.status()
    assert status.peak_bytes <= status.budget_bytes
    assert sum(query.failed + query.stale for query in status.queries.values()) == 0


def test_only_missing_blobs_are_fetched_and_their_bytes_counted(releases, cache):
    _, store, third = releases
    first, second = store.manifest(1), store.manifest(2)
    assert cache.bring(first) == Fetched(len(first.blobs), sum(info.file_bytes for info in first.blobs.values()))
    new = {sha: info for sha, info in second.blobs.items() if sha not in first.blobs}
    assert cache.bring(second) == Fetched(len(new), sum(info.file_bytes for info in new.values()))
    assert cache.bring(third) == cache.bring(first) == Fetched(0, 0)


def damage_missing(path, data):
    path.unlink()


def damage_truncated(path, data):
    path.write_bytes(data[: len(data) // 2])


def damage_flipped(path, data):
    path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])


@pytest.mark.parametrize("damage", [damage_missing, damage_truncated, damage_flipped])
def test_a_damaged_blob_keeps_the_old_release_and_the_next_attempt_mends_it(releases, engine, cache, damage):
    made, store, _ = releases
    manifest = store.manifest(2)
    sha = next(sha for sha in sorted(manifest.blobs) if sha not in made[1].manifest.blobs)
    path = made[1].store / "blobs" / "sha256" / sha[:2] / f"{sha}.safetensors"
    whole = path.read_bytes()
    damage(path, whole)
    try:
        with Load(engine) as load:
            load.so_many(4)
            with pytest.raises((MissingBlobError, CorruptBlobError), match=sha):
                cache.bring(manifest)
        assert engine.status().release == 1
        assert_right(releases, load)
    finally:
        path.write_bytes(whole)
    assert cache.bring(manifest).blobs >= 1
    engine.roll(manifest, cache.fetch)
    assert engine.status().release == 2


def test_a_local_copy_damaged_between_fetch_and_load_never_reaches_a_camera(releases, engine, cache):
    """The header is read when the rollout begins, the tensors later; by then the file may have been cut."""
    made, store, _ = releases
    manifest = store.manifest(2)
    cache.bring(manifest)
    sha = next(sha for sha in manifest.blobs_of("north_cars") if sha not in made[1].manifest.blobs)

    def spoil_once(wanted):
        path = cache.fetch(wanted)
        if wanted == sha:
            path.write_bytes(path.read_bytes()[:-8])
        return path

    with Load(engine) as load, pytest.raises((CorruptBlobError, ServingError)):
        engine.roll(manifest, spoil_once)
    assert engine.status().release == 1
    assert_right(releases, load)
    engine.roll(manifest, cache.fetch)


def broken(releases, fill, only=CLASSIFIERS):
    """A release whose blobs are whole and whose weights are not."""
    _, store, _ = releases
    base = store.manifest(1)
    spoiled = {}
    for sha in {sha for query in only for sha in base.blobs_of(query)}:
        tensors = load(store.read_blob(sha))
        data = save({name: fill(t) if t.is_floating_point() else t for name, t in tensors.items()})
        spoiled[sha] = (store.put_blob(data), BlobInfo(tensor_bytes=base.blobs[sha].tensor_bytes, file_bytes=len(data)))
    blobs = {spoiled.get(sha, (sha,))[0]: spoiled[sha][1] if sha in spoiled else i for sha, i in base.blobs.items()}
    queries = {
        name: found.model_copy(update={"weights": {p: spoiled.get(s, (s,))[0] for p, s in found.weights.items()}})
        for name, found in base.queries.items()
    }
    return store.publish(base.model_copy(update={"queries": queries, "blobs": blobs, "parent": 1}), head=False)


def test_weights_that_are_not_numbers_are_found_before_a_camera_sees_them(releases, engine, cache):
    manifest = broken(releases, lambda tensor: torch.full_like(tensor, float("nan")))
    cache.bring(manifest)
    with Load(engine) as load:
        load.so_many(8)
        with pytest.raises(ServingError, match=rf"release {manifest.release}.*not finite"):
            engine.roll(manifest, cache.fetch)
    assert engine.status().release == 1
    assert_right(releases, load)


def test_a_release_that_does_not_fit_is_refused_and_the_old_one_stays(releases, cache):
    made = releases[0][1]
    engine = Engine(budget_bytes=made.bytes_of("north_people") + 2**22, device="cpu", threads=1)
    small = restricted(made.manifest, ["north_people"])
    cache.bring(made.manifest)
    engine.start(small, cache.fetch)
    try:
        huge = made.manifest.model_copy(
            update={
                "blobs": {
                    sha: info.model_copy(update={"tensor_bytes": 10**9}) for sha, info in made.manifest.blobs.items()
                }
            }
        )
        with pytest.raises(OverBudgetError):
            engine.roll(huge, cache.fetch)
        assert engine.submit("north_people", FRAMES[0], droppable=False).result(timeout=WAIT_S).fresh
    finally:
        engine.stop()


def test_queries_come_and_go_with_releases(releases, engine, cache):
    made = releases[0][1]
    assert engine.submit("south_cars", FRAMES[0], droppable=False).result(timeout=WAIT_S).fresh
    engine.roll(restricted(made.manifest, ["north_cars"]), cache.fetch)
    assert engine._running().samples.of("south_cars") == ()
    assert list(engine.status().queries) == ["north_cars"]
    with pytest.raises(ServingError, match="no query 'south_cars' is served here"):
        engine.submit("south_cars", FRAMES[0])
    with Load(engine, ["north_cars"]) as load:
        assert set(engine.roll(made.manifest, cache.fetch)) == set(CLASSIFIERS) - {"north_cars"}
        load.so_many(2)
    assert_right(releases, load)
    for query in CLASSIFIERS:
        assert engine.submit(query, FRAMES[0], droppable=False).result(timeout=WAIT_S).fresh


def test_two_rollouts_at_once_are_refused_and_a_stop_ends_one(releases, engine, cache):
    _, store, _ = releases
    manifest = store.manifest(2)
    cache.bring(manifest)
    began, go_on = threading.Event(), threading.Event()

    def slow(sha):
        began.set()
        assert go_on.wait(WAIT_S)
        return cache.fetch(sha)

    failures = []

    def roll():
        try:
            engine.roll(manifest, slow)
        except ServingError as error:
            failures.append(str(error))

    thread = threading.Thread(target=roll)
    thread.start()
    assert began.wait(WAIT_S)
    with pytest.raises(ServingError, match="being rolled out"):
        engine.roll(manifest, cache.fetch)
    engine.stop()
    go_on.set()
    thread.join(WAIT_S)
    assert failures
    assert "stopped" in failures[0]


def test_a_release_with_the_same_weights_only_changes_its_number(releases, engine, cache):
    made = releases[0][1]
    again = made.manifest.model_copy(update={"release": 9})
    assert changed_queries(made.manifest, again) == ()
    assert engine.roll(again, cache.fetch) == ()
    given = engine.submit("north_cars", FRAMES[0], droppable=False).result(timeout=WAIT_S)
    assert (given.fresh, given.release) == (True, 9)

"""The controller over real engines in this process: rollout, revert, canary, nodes lost and back, its own restart."""

import asyncio
import shutil
import time
from dataclasses import replace

import pytest
from safetensors.torch import load, save
from tiny_release import CLASSIFIERS, noise, publish_tiny_release, publish_variant

from gemel_ray.engine.engine import Engine
from gemel_ray.policy.rollout import Rules
from gemel_ray.serving.assigned_engine import AssignedEngine
from gemel_ray.serving.control import Control
from gemel_ray.serving.event_log import EventLog
from gemel_ray.serving.options import parse_options
from gemel_ray.serving.releases import with_release
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.profile import DeviceProfile, QueryProfile
from gemel_ray.spec.release import BlobInfo
from gemel_ray.weights.store import open_store

PATIENCE_S = 120
# Invented, so that no test waits for measurements.
COSTS = DeviceProfile(
    device="invented",
    estimated=True,
    load_fixed_ms=0.1,
    load_bytes_per_ms=1e6,
    queries={name: QueryProfile(run_ms={1: 5.0, 2: 8.0}, workspace_bytes={1: 2**20, 2: 2**21}) for name in CLASSIFIERS},
)


class Fleet:
    """Engines in this process as a controller's engines; one that is cut off does not answer."""

    def __init__(self, store, cache, memory_bytes):
        self.store, self.cache, self.memory_bytes = str(store), str(cache), memory_bytes
        self.manifest = open_store(store).manifest()
        self.cut_off, self.gone_names, self.engines = set(), set(), {}
        for name in memory_bytes:
            self.start(name)

    def start(self, name):
        engine = Engine(budget_bytes=self.memory_bytes[name], device="cpu", threads=1)
        engine.costs.learn(self.manifest, COSTS)
        assigned = AssignedEngine(engine, self.store, self.cache, name)
        assigned.boot(with_all=False, resume=True)
        self.engines[name] = (assigned, engine)

    def kill(self, name):
        self.cut_off.add(name)
        self.engines.pop(name)[0].stop()

    def revive(self, name):
        self.start(name)
        self.cut_off.discard(name)
        self.gone_names.discard(name)

    def _of(self, node):
        if node in self.cut_off or node not in self.engines:
            raise ServingError(f"node {node!r} gave no answer")
        return self.engines[node][0]

    async def report(self, node):
        return self._of(node).report()

    async def assign(self, change):
        self._of(change.node).assign(change.release, change.queries, change.refuse)

    async def costs(self, node, release):
        return self._of(node).costs(release)

    async def gone(self):
        return frozenset(self.gone_names)

    def stop(self):
        for assigned, _ in self.engines.values():
            assigned.stop()

    def answer(self, query, frame):
        for assigned, engine in self.engines.values():
            if (told := assigned.describe()) is not None and query in told.queries:
                return engine.submit(query, frame, droppable=False).result(timeout=PATIENCE_S)
        return None


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A store with two releases, the first of which is HEAD."""
    folder = tmp_path_factory.mktemp("control") / "store"
    first = publish_tiny_release(folder)
    second = publish_variant(first)
    open_store(folder).set_head(1)
    return first, second


@pytest.fixture
def store(published, tmp_path):
    """The first release in a store of this test's own, and the store."""
    shutil.copytree(published[0].store, tmp_path / "store")
    return replace(published[0], store=tmp_path / "store"), open_store(tmp_path / "store")


@pytest.fixture
def fleet(store, tmp_path):
    fleet = Fleet(store[0].store, tmp_path / "cache", {"box-a": 64 << 20, "box-b": 64 << 20})
    yield fleet
    fleet.stop()


def control_of(fleet, *, release=None, follow=True, canary_s=0.0, grace_s=0.0, path=None):
    return Control(
        fleet.store,
        fleet.memory_bytes,
        fleet,
        release=release,
        follow=follow,
        rules=Rules(canary_s=canary_s, grace_s=grace_s),
        events=EventLog(path),
        now_s=time.monotonic,
        gone=fleet.gone,
    )


def settle(control, until=lambda control: control.reply.is_settled):
    """Step until all is as it is wanted; a step that finds nothing to do is the last."""

    async def steps():
        deadline = time.monotonic() + PATIENCE_S
        while True:
            await control.step()
            if until(control):
                return
            assert time.monotonic() < deadline, control.reply
            await asyncio.sleep(0.01)

    asyncio.run(steps())


def served(fleet):
    return {name: assigned.report() for name, (assigned, _) in fleet.engines.items()}


def queries_of(fleet):
    return {name: set(report.queries) for name, report in served(fleet).items()}


def told(control, kind):
    return [event.text for event in control.events.all if event.kind == kind]


def broken(store, fill):
    """A release made of the first one, with whole blobs and spoilt weights, as HEAD."""
    base, new, infos = store.manifest(1), {}, {}
    for sha in base.blobs:
        tensors = load(store.read_blob(sha))
        data = save({name: fill(t) if t.is_floating_point() else t for name, t in tensors.items()})
        new[sha] = store.put_blob(data)
        infos[new[sha]] = BlobInfo(tensor_bytes=base.blobs[sha].tensor_bytes, file_bytes=len(data))
    queries = {
        name: found.model_copy(update={"weights": {path: new[sha] for path, sha in found.weights.items()}})
        for name, found in base.queries.items()
    }
    held = sum(info.tensor_bytes for info in infos.values())
    changed = {"queries": queries, "blobs": infos, "parent": 1, "bytes_after": held}
    return store.publish(base.model_copy(update=changed))


def test_queries_are_placed_once_and_a_settled_fleet_is_left_alone(store, fleet):
    control = control_of(fleet)
    settle(control)
    placed = queries_of(fleet)
    assert set().union(*placed.values()) == set(CLASSIFIERS)
    assert sum(map(len, placed.values())) == len(CLASSIFIERS)
    events = len(control.events.all)
    for _ in range(3):
        settle(control)
    assert queries_of(fleet) == placed
    assert len(control.events.all) == events
    for query in CLASSIFIERS:
        given = fleet.answer(query, noise(1))
        assert given.answer.scores == pytest.approx(store[0].direct(query, [noise(1)])[0].scores, abs=1e-4)


def test_a_new_head_and_the_way_back_reach_every_node_and_only_what_is_missing_is_fetched(published, store, fleet):
    control = control_of(fleet)
    settle(control)
    store[1].set_head(2)
    settle(control, lambda control: control.reply.is_settled and control.reply.target == 2)
    assert {report.release for report in served(fleet).values() if report.queries} == {2}
    assert sum(report.fetched_bytes for report in served(fleet).values()) > 0
    for query in CLASSIFIERS:
        given = fleet.answer(query, noise(1))
        assert given.answer.scores == pytest.approx(published[1].direct(query, [noise(1)])[0].scores, abs=1e-4)
    store[1].set_head(1)
    settle(control, lambda control: control.reply.is_settled and control.reply.target == 1)
    assert {(report.release, report.fetched_bytes) for report in served(fleet).values() if report.queries} == {(1, 0)}
    assert any("release 1 instead of 2" in text for text in told(control, "release"))


def test_a_pinned_release_stays_while_others_are_published_until_it_is_unpinned(store, fleet):
    control = control_of(fleet)
    settle(control)
    store[1].set_pin(1)
    store[1].set_head(2)
    settle(control, lambda control: control.reply.pinned == 1 and control.reply.is_settled)
    assert control.reply.target == 1
    assert {report.release for report in served(fleet).values() if report.queries} == {1}
    store[1].set_pin(None)
    settle(control, lambda control: control.reply.is_settled and control.reply.target == 2)
    assert {report.release for report in served(fleet).values() if report.queries} == {2}
    assert control.reply.pinned is None
    assert [text for text in told(control, "release") if "pinned" in text] == [
        "release 1 is pinned",
        "release 1 is pinned no more",
    ]


def test_a_release_with_spoilt_weights_stops_at_the_first_node_and_says_why(store, fleet):
    control = control_of(fleet)
    settle(control)
    broken(store[1], lambda tensor: tensor * float("nan"))
    settle(control, lambda control: control.reply.blocked is not None and control.reply.is_settled)
    assert {report.release for report in served(fleet).values() if report.queries} == {1}
    assert "not finite" in control.reply.blocked
    assert sum(3 in report.refused for report in served(fleet).values()) == 1
    assert any("stopped: release 3" in text for text in told(control, "release"))
    store[1].set_head(1)
    settle(control, lambda control: control.reply.is_settled and control.reply.target == 1)
    assert control.reply.blocked is None


def test_a_damaged_blob_in_the_store_keeps_the_release_everywhere(store, fleet):
    control = control_of(fleet)
    settle(control)
    store[1].set_head(2)
    for sha in store[1].manifest(2).blobs.keys() - store[0].manifest.blobs.keys():
        path = store[0].store / "blobs" / "sha256" / sha[:2] / f"{sha}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    settle(control, lambda control: control.reply.blocked is not None and control.reply.is_settled)
    assert {report.release for report in served(fleet).values() if report.queries} == {1}
    assert "is damaged" in control.reply.blocked


def with_input_size(manifest, query, pixels):
    """The release with a query's model in a form that no engine has seen: other activations, the same weights."""
    released = manifest.queries[query]
    model = released.query.model.model_copy(update={"input_size": pixels})
    other = released.model_copy(update={"query": released.query.model_copy(update={"model": model})})
    return manifest.model_copy(update={"queries": {**manifest.queries, query: other}, "parent": manifest.release})


def test_a_model_of_a_new_form_is_measured_where_it_is_to_run_and_served(store, fleet):
    opened = store[1]
    control = control_of(fleet)
    settle(control)
    number = opened.publish(with_input_size(opened.manifest(1), "north_people", 48)).release
    settle(control)
    assert {report.release for report in served(fleet).values()} == {number}
    assert fleet.answer("north_people", noise(1)).release == number
    for _, engine in fleet.engines.values():
        assert engine.costs.profile(opened.manifest(number)).device != "invented"
    assert not any("stopped" in text for text in told(control, "release"))


def test_a_model_of_a_new_form_that_fails_keeps_the_release_everywhere(store, fleet):
    opened = store[1]
    control = control_of(fleet)
    settle(control)
    opened.publish(with_input_size(opened.manifest(1), "north_cars", 2))
    settle(control, lambda control: "cannot be measured" in (control.reply.blocked or ""))
    assert {report.release for report in served(fleet).values()} == {1}
    assert fleet.answer("north_cars", noise(1)).fresh


def test_the_first_node_serves_a_new_release_for_a_while_before_the_other_follows(store, tmp_path):
    # Too small for everything together, so that both nodes have queries.
    half = store[0].manifest.bytes_after // 2 + (4 << 20)
    fleet = Fleet(store[0].store, tmp_path / "cache", {"box-a": half, "box-b": half})
    try:
        control = control_of(fleet, canary_s=1e9)
        settle(control)
        assert all(queries_of(fleet).values())
        store[1].set_head(2)
        settle(control, lambda control: "before" in (control.reply.doing or ""))
        assert sorted(report.release for report in served(fleet).values()) == [1, 2]
    finally:
        fleet.stop()


def test_queries_of_a_lost_node_move_and_a_node_that_is_back_rejoins(store, fleet):
    control = control_of(fleet)
    settle(control)
    busy = max(queries_of(fleet), key=lambda name: len(queries_of(fleet)[name]))
    other = ({"box-a", "box-b"} - {busy}).pop()
    fleet.kill(busy)
    fleet.gone_names.add(busy)
    settle(control)
    assert queries_of(fleet)[other] == set(CLASSIFIERS)
    assert any(f"{busy} does not answer: its machine has left" in text for text in told(control, "node"))
    fleet.revive(busy)
    settle(control)
    assert any(f"{busy} answers, serving" in text for text in told(control, "node"))
    assert sum(map(len, queries_of(fleet).values())) == len(CLASSIFIERS)


def test_a_query_that_fits_no_node_left_is_told_with_what_it_lacks(store, tmp_path):
    needed = store[0].bytes_of("north_cars")
    fleet = Fleet(store[0].store, tmp_path / "cache", {"large": 64 << 20, "small": needed // 4})
    try:
        control = control_of(fleet)
        settle(control)
        fleet.kill("large")
        fleet.gone_names.add("large")
        settle(control)
        assert set(control.reply.unplaced) >= {"north_cars"}
        assert "small lacks" in control.reply.unplaced["north_cars"]
        fleet.revive("large")
        settle(control)
        assert control.reply.unplaced == {}
        assert any("north_cars has a home again" in text for text in told(control, "query"))
    finally:
        fleet.stop()


def test_a_controller_that_starts_anew_changes_nothing_and_knows_its_events(store, fleet, tmp_path):
    path = tmp_path / "events.json"
    first = control_of(fleet, path=path)
    settle(first)
    before, known = served(fleet), first.events.all
    second = control_of(fleet, path=path)
    settle(second)
    assert {n: (r.release, r.queries) for n, r in served(fleet).items()} == {
        n: (r.release, r.queries) for n, r in before.items()
    }
    assert second.events.all[: len(known)] == known


def test_without_following_head_the_first_release_stays(store, fleet):
    control = control_of(fleet, follow=False)
    settle(control)
    store[1].set_head(2)
    settle(control)
    assert control.reply.target == 1


def test_without_following_head_the_release_of_the_deployment_outlives_its_controller(store, fleet):
    deployed = with_release(parse_options({"store": fleet.store, "nodes": [{"memory": "64MiB"}]}))
    settle(control_of(fleet, release=deployed.release, follow=False))
    store[1].set_head(2)
    again = control_of(fleet, release=deployed.release, follow=False)
    settle(again)
    assert again.reply.target == 1
    assert {report.release for report in served(fleet).values() if report.queries} == {1}


def test_a_store_that_is_away_changes_nothing_and_is_told(store, fleet):
    control = control_of(fleet)
    settle(control)
    before = queries_of(fleet)
    head = store[0].store / "HEAD"
    text = head.read_text()
    head.write_text("not a number")
    settle(control, lambda control: bool(told(control, "store")))
    assert queries_of(fleet) == before
    head.write_text(text)
    settle(control)


def test_an_engine_that_starts_anew_without_store_or_controller_serves_what_it_had(store, fleet):
    control = control_of(fleet)
    settle(control)
    name = max(queries_of(fleet), key=lambda name: len(queries_of(fleet)[name]))
    had = queries_of(fleet)[name]
    fleet.kill(name)
    store[0].store.rename(store[0].store.with_name("elsewhere"))
    fleet.revive(name)
    assert queries_of(fleet)[name] == had
    assert fleet.answer(next(iter(had)), noise(0)).fresh

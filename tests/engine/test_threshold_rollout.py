"""A release that changes nothing but a detector's threshold."""

import pytest
from edge_plans import manifest_of, profile_of
from tiny_release import noise, publish_tiny_release

from gemel_ray.engine.engine import Engine
from gemel_ray.policy.transition import changed_queries, compared_queries
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.store import open_store

QUERY = "harbour_boxes"
WAIT_S = 120


def with_threshold(manifest, threshold, *names):
    """The release, with these queries showing boxes from another score on."""
    changed = {
        name: found.model_copy(update={"query": found.query.model_copy(update={"score_threshold": threshold})})
        for name, found in manifest.queries.items()
        if name in names
    }
    return manifest.model_copy(update={"queries": {**manifest.queries, **changed}})


def test_a_query_with_another_threshold_has_changed_and_is_not_held_against_its_old_answers():
    old = manifest_of({"qa": ("a",), "qb": ("b",)}, {"a": 1, "b": 1})
    new = with_threshold(old, 0.9, "qb").model_copy(update={"release": 2})
    assert changed_queries(old, new) == ("qb",)
    assert compared_queries(old, new) == {"qa"}


@pytest.fixture
def store_and_release(tmp_path):
    made = publish_tiny_release(tmp_path / "store", (QUERY,))
    store = open_store(made.store)
    return store, store.publish(with_threshold(made.manifest, 0.0, QUERY))


def test_it_holds_without_a_restart_and_however_other_its_answers_are(store_and_release, tmp_path):
    store, first = store_and_release
    cache, frame = LocalCache(store, tmp_path / "cache"), noise(1)
    cache.bring(first)
    engine = Engine(budget_bytes=300 << 20, device="cpu", threads=1)
    engine.start(first, cache.fetch, profile_of([QUERY], run_ms={1: 60.0}, workspace_bytes={1: 2**25}))
    try:
        shown = engine.submit(QUERY, frame, droppable=False).result(WAIT_S).answer
        assert shown.boxes
        # As a camera's frames leave them behind, one a second.
        for second in range(8):
            engine._run.samples.offer(QUERY, frame, shown, 1e6 + 1e3 * second)
        assert engine.roll(store.publish(with_threshold(first, 1.0, QUERY)), cache.fetch) == (QUERY,)
        assert engine.submit(QUERY, frame, droppable=False).result(WAIT_S).answer.boxes == ()
    finally:
        engine.stop()

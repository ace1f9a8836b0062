"""A release with models of forms that the engine has never seen: measured beside the old release, under load."""

import threading
from concurrent.futures import wait

import pytest
from tiny_release import noise, publish_tiny_release

from gemel_ray.engine.engine import Engine
from gemel_ray.spec.errors import ModelError, ServingError
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.store import open_store

WAIT_S = 120
CARS = ("north_cars", "south_cars")
FRAME = noise(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Release 1 has models of one form, release 2 of two: the second one in the place of a query's first, too."""
    folder = tmp_path_factory.mktemp("forms") / "store"
    first = publish_tiny_release(folder, CARS)
    second = publish_tiny_release(folder, (*CARS, "north_people"))
    return first, second, LocalCache(open_store(folder), folder.parent / "cache")


@pytest.fixture
def engine(made):
    """In a memory that holds either form's models, never both."""
    first, second, cache = made
    cache.bring(first.manifest)
    cache.bring(second.manifest)
    engine = Engine(budget_bytes=int(0.8 * second.manifest.bytes_after), device="cpu", threads=1)
    engine.start(first.manifest, cache.fetch)
    yield engine
    engine.stop()


def asked_all_along(engine, made, act):
    """What two queries' frames were answered while something was done, in order; none may be lost."""
    answers, ended = [], threading.Event()

    def ask():
        while not ended.is_set():
            futures = [engine.submit(query, FRAME, droppable=False) for query in CARS]
            wait(futures, WAIT_S)
            answers.extend(future.result(timeout=0) for future in futures)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        act()
    finally:
        ended.set()
        thread.join(WAIT_S)
    assert answers
    for given in answers:
        assert given.fresh, given.reason
        wanted = made[given.release - 1].direct(given.query, [FRAME])[0]
        assert given.answer.scores == pytest.approx(wanted.scores, abs=1e-4)
    return answers


def test_a_new_form_is_measured_and_served_without_a_lost_frame_and_within_the_budget(engine, made):
    _, second, cache = made
    assert engine.costs.unknown(second.manifest) == ("north_people",)
    asked_all_along(engine, made, lambda: engine.roll(second.manifest, cache.fetch))
    given = engine.submit("north_people", FRAME, droppable=False).result(timeout=WAIT_S)
    assert (given.fresh, given.release) == (True, 2)
    (wanted,) = second.direct("north_people", [FRAME])
    assert given.answer.scores == pytest.approx(wanted.scores, abs=1e-4)
    assert engine.costs.unknown(second.manifest) == ()
    status = engine.status()
    assert status.peak_bytes <= status.budget_bytes
    assert set(status.queries) == set(second.manifest.queries)


def test_what_it_costs_may_be_measured_before_it_is_rolled_out(engine, made):
    _, second, cache = made
    asked_all_along(engine, made, lambda: engine.measure_beside(second.manifest, cache.fetch))
    assert engine.status().release == 1
    assert engine.costs.profile(second.manifest).queries.keys() == second.manifest.queries.keys()
    runs = engine.costs.profile(second.manifest).queries["north_people"].run_ms
    assert all(took_ms > 0 for took_ms in runs.values())


def with_model(manifest, query, **changes):
    """The release under another number, in which a query's model is another one."""
    released = manifest.queries[query]
    model = released.query.model.model_copy(update=changes)
    other = released.model_copy(update={"query": released.query.model_copy(update={"model": model})})
    return manifest.model_copy(update={"release": 9, "queries": {**manifest.queries, query: other}})


@pytest.mark.parametrize(
    ("query", "changes", "error", "told"),
    [
        ("north_people", {"architecture": "mobilenet_v3_large"}, ModelError, "was the release made for another model"),
        ("north_cars", {"input_size": 2}, ServingError, "models of a new form cannot be measured here.*Kernel size"),
    ],
    ids=["cannot be built", "fails as soon as it computes"],
)
def test_a_form_that_cannot_be_measured_is_refused_and_the_old_one_served_on(engine, made, query, changes, error, told):
    _, second, cache = made
    spoilt = with_model(second.manifest, query, **changes)

    def refused():
        with pytest.raises(error, match=told):
            engine.roll(spoilt, cache.fetch)

    asked_all_along(engine, made, refused)
    assert engine.status().release == 1
    assert query in engine.costs.unknown(spoilt)

"""A box on its own, in this process: a real engine that follows a real store through whatever befalls it."""

import io
import shutil
from pathlib import Path

import PIL.Image
import pytest
from tiny_release import noise, publish_tiny_release

from gemel_ray.serving.drift_options import DriftOptions
from gemel_ray.serving.edge_box import EdgeBox
from gemel_ray.serving.options import EdgeOptions, NodeOptions, load_edge_options
from gemel_ray.spec.errors import InputError, ModelError, OverBudgetError, StoreError
from gemel_ray.weights.store import open_store

PAIR = ("north_cars", "south_cars")
# So long that only the tests themselves ask the store.
NEVER_S = 80_000


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def box_of(store, tmp_path):
    """A box on the test's store; its disk outlives it, as a real one's does."""
    boxes = []

    def make(memory=1 << 26, queries=None, release=None):
        options = EdgeOptions(cache=str(tmp_path / "disk"), poll_every_s=NEVER_S, queries=queries, threads=1)
        box = EdgeBox(str(store), NodeOptions(memory=memory, device="cpu"), options, release=release)
        boxes.append(box)
        return box

    yield make
    for box in boxes:
        box.stop()


def started(box):
    box.start()
    return box


def published(store, queries=PAIR, seed=3):
    return publish_tiny_release(store, queries, seed=seed)


def damage(store, sha):
    path = open_store(store).locate_blob(sha)
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


def new_blob(store, before, after):
    return min(after.manifest.blobs.keys() - before.manifest.blobs.keys())


def answers(client, query="north_cars", seed=7):
    """The class and the release of an answer over HTTP, to one frame that is not dropped."""
    frame = noise(seed)
    found = client.post(
        f"/v2/models/{query}/infer",
        json={
            "inputs": [
                {"name": "image", "shape": list(frame.shape), "datatype": "UINT8", "data": frame.flatten().tolist()}
            ]
        },
    )
    assert found.status_code == 200, found.text
    document = found.json()
    label = next(output["data"][0] for output in document["outputs"] if output["name"] == "label")
    return label, document["parameters"]["release"]


def expected(made, query="north_cars", seed=7):
    return made.direct(query, [noise(seed)])[0].label, made.manifest.release


def test_the_stores_release_is_served_and_a_new_one_takes_its_place(store, box_of, client_of):
    first = published(store)
    box = started(box_of())
    client = client_of(box)
    assert answers(client) == expected(first)
    assert not box.check(), "nothing is new"
    second = published(store, seed=8)
    assert box.check()
    assert answers(client) == expected(second)
    assert client.get("/v1/status").json()["release"] == 2


def test_without_a_store_the_last_good_release_comes_from_disk(store, box_of, client_of):
    first = published(store)
    started(box_of()).stop()
    shutil.rmtree(store)
    box = started(box_of())
    assert answers(client_of(box)) == expected(first)
    with pytest.raises(StoreError, match="holds no releases"):
        box.check()
    assert answers(client_of(box)) == expected(first)
    again = published(store, seed=8)
    open_store(store).set_head(again.manifest.release)
    assert not box.check(), "a store that was made anew numbers its releases anew: the same number is no news"


def test_without_a_store_and_without_a_release_on_disk_it_does_not_start(box_of):
    with pytest.raises(StoreError, match="holds no releases"):
        box_of().start()


def test_a_damaged_blob_is_refused_and_the_old_release_is_served_on(store, box_of, client_of):
    first = published(store)
    box = started(box_of())
    second = published(store, seed=8)
    whole = open_store(store)
    sha = new_blob(store, first, second)
    data = whole.read_blob(sha)
    damage(store, sha)
    with pytest.raises(StoreError, match="is damaged"):
        box.check()
    assert answers(client_of(box)) == expected(first)
    whole.put_blob(data)
    assert box.check()
    assert answers(client_of(box)) == expected(second)


def test_a_half_written_release_is_no_release(store, box_of, client_of):
    first = published(store)
    box = started(box_of())
    second = published(store, seed=8)
    manifest = store / "releases" / "000002.json"
    manifest.write_bytes(manifest.read_bytes()[:-100])
    with pytest.raises(StoreError, match="not a manifest"):
        box.check()
    (store / "HEAD").write_text("\0\0")
    with pytest.raises(StoreError, match="HEAD"):
        box.check()
    assert answers(client_of(box)) == expected(first)
    assert second.manifest.release == 2


def test_a_release_that_does_not_fit_is_refused_and_never_the_one_to_start_with(store, box_of, client_of):
    first = published(store)
    memory = first.manifest.bytes_after + (4 << 20)
    box = started(box_of(memory=memory))
    published(store, (*PAIR, "harbour_boxes"), seed=8)
    with pytest.raises(OverBudgetError):
        box.check()
    assert answers(client_of(box)) == expected(first)
    box.stop()
    assert answers(client_of(started(box_of(memory=memory)))) == expected(first)


def test_a_release_whose_models_cannot_be_built_is_refused(store, box_of, client_of):
    first = published(store)
    box = started(box_of())
    spoilt = published(store, (*PAIR, "north_people"), seed=8)
    query = spoilt.manifest.queries["north_people"]
    model = query.query.model.model_copy(update={"architecture": "mobilenet_v3_large"})
    other = query.model_copy(update={"query": query.query.model_copy(update={"model": model})})
    queries = spoilt.manifest.queries | {"north_people": other}
    open_store(store).publish(spoilt.manifest.model_copy(update={"queries": queries}))
    with pytest.raises(ModelError, match="was the release made for another model"):
        box.check()
    assert answers(client_of(box)) == expected(first)


def test_an_engine_that_has_failed_is_started_anew(store, box_of, client_of):
    first = published(store)
    box = started(box_of())
    box._engine.stop()
    box._heal()
    assert answers(client_of(box)) == expected(first)


def test_a_model_of_a_new_form_is_served_by_the_engine_that_runs(store, box_of, client_of):
    published(store)
    box = started(box_of())
    run = box._engine._run
    second = published(store, (*PAIR, "north_people"), seed=8)
    assert box.check()
    assert box._engine._run is run
    client = client_of(box)
    assert answers(client, "north_people") == expected(second, "north_people")
    assert answers(client) == expected(second)


def test_going_back_in_the_store_goes_back_on_the_box(store, box_of, client_of):
    first = published(store)
    published(store, seed=8)
    box = started(box_of())
    open_store(store).set_head(1)
    assert box.check()
    assert answers(client_of(box)) == expected(first)


def test_a_box_may_stay_with_one_release(store, box_of, client_of):
    first = published(store)
    published(store, seed=8)
    box = started(box_of(release=1))
    assert not box.check()
    assert answers(client_of(box)) == expected(first)


def test_a_box_may_answer_some_queries_and_fetches_no_more_than_they_need(store, box_of, client_of, tmp_path):
    made = published(store)
    box = started(box_of(queries=("north_cars",)))
    assert not box.check()
    client = client_of(box)
    assert answers(client) == expected(made)
    assert client.get("/v2/models/south_cars").status_code == 404
    fetched = {path.stem for path in (tmp_path / "disk").rglob("*.safetensors")}
    assert fetched == set(made.manifest.blobs_of("north_cars"))
    box.stop()
    both = started(box_of(queries=PAIR))
    both.check()
    assert answers(client_of(both), "south_cars") == expected(made, "south_cars")


def test_a_query_that_the_release_lacks_is_told_with_the_nearest_name(store, box_of):
    published(store)
    with pytest.raises(InputError, match="did you mean 'north_cars'"):
        box_of(queries=("north_car",)).start()


def test_a_box_restarted_for_all_queries_serves_all(store, box_of, client_of):
    made = published(store)
    started(box_of(queries=("north_cars",))).stop()
    box = started(box_of())
    # It may have asked by itself already.
    box.check()
    client = client_of(box)
    assert {query["name"] for query in client.get("/v1/status").json()["queries"]} == set(PAIR)
    assert answers(client, "south_cars") == expected(made, "south_cars")
    assert not box.check()


def test_a_box_restarted_for_some_queries_serves_them_alone_without_the_store_too(store, box_of, client_of):
    made = published(store)
    started(box_of()).stop()
    shutil.rmtree(store)
    client = client_of(started(box_of(queries=("north_cars",))))
    assert [query["name"] for query in client.get("/v1/status").json()["queries"]] == ["north_cars"]
    assert answers(client) == expected(made)
    refused = client.post("/v1/queries/south_cars/frames", content=b"", headers={"Content-Type": "image/jpeg"})
    assert (refused.status_code, "is served here" in refused.json()["error"]) == (404, True)


@pytest.mark.parametrize("is_away", [False, True])
def test_a_box_restarted_for_a_query_that_nobody_has_does_not_start(store, box_of, is_away):
    published(store)
    started(box_of()).stop()
    if is_away:
        shutil.rmtree(store)
    with pytest.raises(InputError, match="queries: release 1 has no 'zzz'"):
        box_of(queries=("zzz",)).start()


def test_what_is_wrong_with_the_store_is_told_in_the_status(store, box_of, client_of):
    published(store)
    box = started(box_of())
    client = client_of(box)
    assert client.get("/v1/status").json()["nodes"][0]["release_problem"] is None
    shutil.rmtree(store)
    assert not box._has_followed()
    told = client.get("/v1/status").json()["nodes"][0]["release_problem"]
    assert "there is no such folder; mount it, or correct --store" in told
    assert client.get("/v2/health/ready").status_code == 200


def test_options_are_read_from_a_strict_file(tmp_path):
    path = tmp_path / "edge.yaml"
    path.write_text("poll_every_s: 5\nqueries: [a]\n")
    assert load_edge_options(path).queries == ("a",)
    assert load_edge_options(None) == EdgeOptions()
    path.write_text("pol_every_s: 5\n")
    with pytest.raises(InputError, match=r"edge\.yaml:\n.*pol_every_s: unknown key; did you mean 'poll_every_s'"):
        load_edge_options(path)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load_edge_options(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_edge_options(tmp_path / "absent.yaml")


def test_the_shipped_options_can_be_read():
    shipped = load_edge_options(Path(__file__).parents[2] / "serve_configs" / "edge" / "edge.yaml")
    assert shipped == EdgeOptions(drift=DriftOptions())


def test_the_box_is_a_backend_for_the_whole_application(store, box_of, client_of):
    published(store)
    client = client_of(started(box_of()))
    assert "gemel_node_up" in client.get("/metrics").text
    assert "<html" in client.get("/").text.lower()
    picture = io.BytesIO()
    PIL.Image.fromarray(noise(1)).save(picture, "JPEG")
    frame = client.post(
        "/v1/queries/north_cars/frames", content=picture.getvalue(), headers={"Content-Type": "image/jpeg"}
    )
    assert frame.json()["fresh"]

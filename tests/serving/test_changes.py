"""Admins change a running box over HTTP, through the store that it follows."""

import shutil
import time
from pathlib import Path

import pytest
from admin_kit import INFER, PATIENCE_S, READ, service

from gemel_ray.serving.changes import ConflictError, StoreChanges, UnchangeableError, Wish


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A running service that tests leave as they found it."""
    with service(tmp_path_factory.mktemp("admin")) as running:
        yield running


@pytest.fixture
def own(tmp_path):
    """A running service of the test's own."""
    with service(tmp_path) as running:
        yield running


def comes_to_serve(running, release):
    deadline = time.monotonic() + PATIENCE_S
    while (status := running.status())["release"] != release:
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    return status


def test_a_query_runs_its_original_again_and_the_other_what_it_ran(own):
    merged, originals = own.store.manifest(2), own.store.manifest(1)
    reply = own.ask("/v1/queries/north_cars/revert", "POST")
    assert (reply.status_code, reply.json()["release"]) == (200, 3)
    assert "north_cars runs its original again in release 3" in reply.json()["told"]
    made = own.store.manifest()
    assert made.queries["north_cars"].weights == originals.queries["north_cars"].weights
    assert made.queries["south_cars"].weights == merged.queries["south_cars"].weights
    comes_to_serve(own, 3)
    again = own.ask("/v1/queries/north_cars/revert", "POST")
    assert again.status_code == 409
    assert "north_cars: runs its original in release 3 already" in again.json()["error"]
    assert own.ask("/v1/revert", "POST").json()["release"] == 4
    assert comes_to_serve(own, 4)["bytes_after"] == originals.bytes_after


def test_a_pinned_release_stays_and_head_is_served_when_it_is_let_go(own):
    assert own.ask("/v1/pin?release=1", "POST").json()["pinned"] == 1
    assert comes_to_serve(own, 1)["pinned"] == 1
    own.store.publish(own.store.manifest(2))
    assert own.box.check() is False, "what is published is not served"
    refused = own.ask("/v1/queries/north_cars/revert", "POST")
    assert refused.status_code == 409
    assert "release 1 is pinned and stays; `gemel unpin` first" in refused.json()["error"]
    assert own.ask("/v1/pin", "DELETE").json() == {"release": 3, "pinned": None, "told": "unpinned; HEAD is release 3"}
    assert comes_to_serve(own, 3)["pinned"] is None


def test_without_a_number_what_is_served_now_is_pinned_and_not_head(own):
    own.store.publish(own.store.manifest(1))
    assert own.ask("/v1/pin", "POST").json() == {"release": 2, "pinned": 2, "told": "release 2 is pinned"}
    assert (own.store.pinned(), own.store.head()) == (2, 3)


@pytest.mark.parametrize(
    ("served", "told"),
    [((), "nothing is served yet"), ((2, 1), r"releases \[1, 2\] are served"), ((1_000_000_002,), "this box's own")],
)
def test_what_cannot_be_pinned_is_told_with_the_way_out(original, served, told):
    for wish in [Wish(kind="pin")] if len(served) != 1 else [Wish(kind="pin"), Wish(kind="pin", release=served[0])]:
        with pytest.raises(ConflictError, match=rf"{told}.*POST /v1/pin\?release=3"):
            StoreChanges(original.store.locate(), follows=True).do(wish, served)
    assert original.store.pinned() is None


def test_what_does_not_exist_is_told_and_nothing_changes(original):
    unknown = original.ask("/v1/queries/north_car/revert", "POST")
    assert (unknown.status_code, "did you mean 'north_cars'" in unknown.json()["error"]) == (404, True)
    lost = original.ask("/v1/pin?release=99", "POST")
    assert lost.status_code == 409
    assert "has no release 99; it holds [1, 2]" in lost.json()["error"]
    assert original.ask("/v1/pin?release=0", "POST").status_code == 400
    assert (original.store.releases(), original.store.pinned()) == ([1, 2], None)


@pytest.mark.parametrize("token", [READ, INFER])
def test_other_roles_change_nothing(original, token):
    assert original.ask("/v1/pin", "POST", token).status_code == 403
    assert original.store.pinned() is None


def test_a_store_that_cannot_be_written_is_told_with_the_way_out(tmp_path):
    with service(tmp_path) as running:
        folder = Path(running.store.locate())
        # Root may write anywhere, but nobody opens a folder as a file.
        (folder / "PIN").mkdir()
        reply = running.ask("/v1/pin", "POST")
        assert reply.status_code == 409
        assert "nothing was changed" in reply.json()["error"]
        shutil.rmtree(folder / "PIN")
        assert running.ask("/v1/pin", "POST").status_code == 200


def test_a_box_that_stays_with_a_release_is_not_changed(tmp_path):
    with service(tmp_path, release=2) as running:
        reply = running.ask("/v1/revert", "POST")
        assert reply.status_code == 409
        assert "serve it without --release" in reply.json()["error"]
        assert running.store.releases() == [1, 2]


def test_a_store_over_http_is_changed_where_it_is():
    with pytest.raises(UnchangeableError, match=r"can only be read from here; run `gemel revert`.* where the store"):
        StoreChanges("https://models.example/store", follows=True).do(Wish(kind="revert"))


def test_a_store_that_is_away_changes_nothing(tmp_path):
    with pytest.raises(ConflictError, match=r"nothing was changed: .* holds no releases"):
        StoreChanges(str(tmp_path / "away"), follows=True).do(Wish(kind="pin"))


# the newest frames


def test_the_newest_frame_is_a_small_picture_for_those_who_may_read(original):
    path = "/v1/queries/south_cars/thumbnail"
    assert original.ask(path, token=READ).status_code == 204
    original.send("south_cars")
    reply = original.ask(path, token=READ)
    assert (reply.headers["content-type"], reply.headers["cache-control"]) == ("image/jpeg", "no-store")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert original.ask(path, token=INFER).status_code == 403
    (query,) = (found for found in original.status()["queries"] if found["name"] == "south_cars")
    assert (query["thumbnail"]["number"], query["is_fresh"]) == (1, True)
    assert query["thumbnail"]["answer"] == query["last_answer"]


def test_where_cameras_are_private_no_frame_is_kept(tmp_path):
    with service(tmp_path, thumbnails=False) as running:
        running.send("north_cars")
        reply = running.ask("/v1/queries/north_cars/thumbnail", token=READ)
        assert reply.status_code == 404
        assert "keeps no frames" in reply.json()["error"]
        assert {query["thumbnail"] for query in running.status()["queries"]} == {None}

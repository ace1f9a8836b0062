"""The local cache of an edge box: verified copies, and the last good release without the store."""

import os
import shutil
import time
from pathlib import Path

import pytest
from weights_kit import blob_file, publish

from gemel_ray.spec.errors import CorruptBlobError, MissingBlobError, StoreError
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.following import Follower
from gemel_ray.weights.store import open_store

# Linux gives an input/output error to whoever reads the first page of a process's memory, as a failing disk does.
UNREADABLE = Path("/proc/self/mem")


@pytest.fixture
def cache(store, tmp_path):
    return LocalCache(store, tmp_path / "edge")


def lose(store):
    shutil.rmtree(store.locate())


def test_a_blob_is_copied_once(cache, store):
    _, sha = publish(store)
    first = cache.fetch(sha)
    written = first.stat().st_mtime_ns
    assert first.read_bytes() == b"weights"
    assert cache.fetch(sha) == first
    assert first.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", [b"", b"weigh", b"weighxs"])
def test_a_damaged_copy_is_fetched_again(cache, store, damage):
    _, sha = publish(store)
    cache.fetch(sha).write_bytes(damage)
    assert cache.fetch(sha).read_bytes() == b"weights"


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that gives an input/output error")
def test_a_copy_that_the_disk_no_longer_gives_is_fetched_again(cache, store):
    _, sha = publish(store)
    path = cache.fetch(sha)
    path.unlink()
    path.symlink_to(UNREADABLE)
    assert cache.fetch(sha).read_bytes() == b"weights"
    assert not path.is_symlink()


def test_what_is_here_needs_no_store(cache, store):
    _, sha = publish(store)
    cache.fetch(sha)
    lose(store)
    assert cache.fetch(sha).read_bytes() == b"weights"


def test_what_is_not_here_needs_the_store(cache, store, tmp_path):
    with pytest.raises(MissingBlobError):
        cache.fetch("a" * 64)
    with pytest.raises(StoreError, match="the store cannot be reached"):
        LocalCache(None, tmp_path / "edge").fetch("a" * 64)


def test_a_blob_that_is_damaged_in_the_store_is_not_copied(cache, store, tmp_path):
    _, sha = publish(store)
    blob_file(store, sha).write_bytes(b"weighxs")
    with pytest.raises(CorruptBlobError):
        cache.fetch(sha)
    assert not list((tmp_path / "edge").rglob("*.safetensors"))


def test_the_last_release_outlives_the_store_and_a_restart(cache, store, tmp_path):
    release, sha = publish(store)
    assert cache.last_manifest() is None
    assert cache.pull() == release
    lose(store)
    for later in (cache, LocalCache(open_store(store.locate(), create=True), tmp_path / "edge")):
        assert later.pull() == release
        assert later.fetch(sha).read_bytes() == b"weights"
    assert LocalCache(None, tmp_path / "edge").pull() == release


def test_a_release_that_is_incomplete_in_the_store_leaves_the_last_good_one(cache, store):
    good, _ = publish(store)
    cache.pull()
    _, sha = publish(store, b"two")
    blob_file(store, sha).unlink()
    assert cache.pull() == good == cache.last_manifest()
    with pytest.raises(MissingBlobError):
        cache.pull(2)


def test_without_a_last_release_the_reason_is_told(cache, tmp_path):
    with pytest.raises(StoreError, match="HEAD names no release yet"):
        cache.pull()
    with pytest.raises(StoreError, match="restore the connection"):
        LocalCache(None, tmp_path / "edge").pull()


def test_a_release_is_not_the_last_good_one_before_its_blobs_are_here(cache, store):
    release, _ = publish(store)
    with pytest.raises(MissingBlobError, match="fetch the release's blobs first"):
        cache.save_manifest(release)
    assert cache.last_manifest() is None


def test_a_damaged_last_release_is_named(cache, store, tmp_path):
    publish(store)
    cache.pull()
    Path(tmp_path / "edge" / "last_release.json").write_text("{")
    with pytest.raises(StoreError, match=r"last_release\.json is damaged; delete it"):
        cache.last_manifest()


# what goes


def grow_old(folder):
    for path in Path(folder).rglob("*.safetensors"):
        os.utime(path, (time.time() - 7200,) * 2)


def served(follower, store, data):
    """Publish a release of one blob, let a box serve it, and a long time pass."""
    _, sha = publish(store, data)
    release = follower.news(None)
    follower.bring(release)
    follower.settle(release)
    grow_old(follower._folder)
    return sha


def held(folder):
    return {path.stem for path in Path(folder).rglob("*.safetensors")}


@pytest.fixture
def follower(store, tmp_path):
    publish(store, b"original")
    return Follower(store.locate(), tmp_path / "edge")


def test_of_all_releases_served_the_last_two_stay_and_the_originals(follower, store, tmp_path):
    original = follower.originals(store.manifest()).blobs.keys()
    shas = [served(follower, store, f"weights {number}".encode()) for number in range(5)]
    assert held(tmp_path / "edge") == {*original, *shas[-2:]}
    # Also by a process that starts anew.
    again = Follower(store.locate(), tmp_path / "edge")
    shas.append(served(again, store, b"weights five"))
    assert held(tmp_path / "edge") == {*original, *shas[-2:]}
    assert again.last_good().release == 7


def test_the_release_before_outlives_another_look_at_the_one_that_is_served(follower, store, tmp_path):
    shas = [served(follower, store, data) for data in (b"one", b"two")]
    follower.settle(follower.last_good())
    assert held(tmp_path / "edge") == set(shas)


def test_what_came_or_was_looked_at_of_late_stays(follower, store, tmp_path):
    old = [served(follower, store, data) for data in (b"one", b"two", b"three")][1]
    other = LocalCache(store, tmp_path / "edge")
    young = store.put_blob(b"of a release that another engine brings in")
    for sha in (old, young):
        other.fetch(sha)
    release, sha = publish(store, b"four")
    follower.bring(release)
    follower.settle(release)
    assert held(tmp_path / "edge") >= {old, young, sha}


def test_releases_of_other_engines_that_share_the_folder_stay(follower, store, tmp_path):
    release, theirs = publish(store, b"theirs")
    other = LocalCache(store, tmp_path / "edge", last="assigned-box-b.json")
    other.bring(release)
    other.settle(release)
    (tmp_path / "edge" / "costs-box-b.json").write_text("[1, {}]")
    shas = [served(follower, store, f"weights {number}".encode()) for number in range(4)]
    assert held(tmp_path / "edge") == {theirs, *shas[-2:]}


def test_while_a_release_written_down_here_cannot_be_read_nothing_goes(follower, store, tmp_path, caplog):
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "assigned-box-b.json").write_text('{"blobs": {')
    shas = [served(follower, store, f"weights {number}".encode()) for number in range(4)]
    assert held(tmp_path / "edge") == set(shas)
    assert "assigned-box-b.json is damaged, and may name some of it; delete it" in caplog.text


def test_a_folder_that_is_a_store_itself_loses_nothing(store):
    first, second = publish(store, b"one")[1], publish(store, b"two")[1]
    unpublished = store.put_blob(b"of a search")
    follower = Follower(store.locate(), store.locate())
    grow_old(store.locate())
    shas = [served(follower, store, f"weights {number}".encode()) for number in range(3)]
    assert held(store.locate()) == {first, second, unpublished, *shas}


def test_a_box_whose_disk_can_only_be_read_starts_from_it(follower, store, tmp_path, monkeypatch):
    sha = served(follower, store, b"weights")
    lose(store)

    def refused(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    assert Follower(store.locate(), tmp_path / "edge").fetch(sha).read_bytes() == b"weights"

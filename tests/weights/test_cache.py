"""The local cache of an edge box: verified copies, and the last good release without the store."""

import shutil
from pathlib import Path

import pytest
from weights_kit import blob_file, publish

from gemel_ray.spec.errors import CorruptBlobError, MissingBlobError, StoreError
from gemel_ray.weights.cache import LocalCache
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

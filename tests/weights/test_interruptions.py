"""The store under real processes: killed while they publish, publishing at once, out of disk."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from weights_kit import files_below, publish

from gemel_ray.weights.store import open_store

PUBLISHER = Path(__file__).parent / "publisher.py"


def start(*arguments):
    return subprocess.Popen([sys.executable, str(PUBLISHER), *map(str, arguments)], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("syncs", "releases", "head"),
    [
        pytest.param(0, [1], 1, id="in the middle of the blob"),
        pytest.param(1, [1], 1, id="blob complete, not in place"),
        pytest.param(2, [1], 1, id="blob in place"),
        pytest.param(3, [1], 1, id="manifest complete, not in place"),
        pytest.param(4, [1, 2], 1, id="manifest in place"),
        pytest.param(5, [1, 2], 1, id="HEAD complete, not in place"),
        pytest.param(6, [1, 2], 2, id="HEAD in place"),
    ],
)
def test_a_publisher_killed_at_any_moment_leaves_a_whole_head(store, syncs, releases, head):
    publish(store)
    child = start(store.locate(), 1, "killed", syncs)
    _, told = child.communicate()
    assert child.returncode == -signal.SIGKILL, told
    assert store.releases() == releases
    assert store.manifest().release == head
    assert all("safe to delete" in problem.what for problem in store.verify())
    # The next publisher is not held up by what the dead one left.
    assert publish(store, b"next")[0].release == releases[-1] + 1 == store.head()


def test_two_publishers_at_once_never_overwrite_each_other(store):
    children = [start(store.locate(), 20, salt) for salt in ("one", "two")]
    for child in children:
        _, told = child.communicate()
        assert child.returncode == 0, told
    assert store.releases() == list(range(1, 41))
    blobs = {next(iter(store.manifest(number).blobs)) for number in store.releases()}
    assert {store.read_blob(sha).decode() for sha in blobs} == {
        f"{who} {n}" for who in ("one", "two") for n in range(20)
    }
    assert store.head() == 40
    assert store.verify() == []


FULL_DISK = """
import resource, signal, sys
from gemel_ray.spec.errors import StoreError
from gemel_ray.weights.store import open_store
store = open_store(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    store.put_blob(b"x" * 5000)
except StoreError as error:
    print(error)
"""


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path):
    # A limit on the size of files stands in for the disk's: the write fails midway, after its first bytes.
    store = open_store(tmp_path, create=True)
    publish(store)
    before = files_below(tmp_path)
    child = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large; free space" in child.stdout
    assert files_below(tmp_path) == before
    assert store.verify() == []

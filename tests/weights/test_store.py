"""The store: whole or absent, verified on read, damage named."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.spec.errors import CorruptBlobError, MissingBlobError, MissingReleaseError, StoreError
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.release import BlobInfo, Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.workload import ModelSpec, Query
from gemel_ray.weights.models import BlobReader, load_state, put_tensors, store_models
from gemel_ray.weights.store import open_store

GOLDEN = Path(__file__).parent / "goldens" / "manifest.json"


def query(name="cars"):
    model = ModelSpec(architecture="resnet18", classes=("background", "car"))
    return Query(name=name, feed="f", model=model, accuracy_target=0.95, fps=10, slo_ms=100)


def manifest(blobs, *, created_at="2026-11-24T00:00:00Z"):
    held = sum(info.tensor_bytes for info in blobs.values())
    (sha, *_) = blobs
    return Manifest(
        release=1,
        workload_name="w",
        workload_hash="0" * 64,
        queries={"cars": ReleasedQuery(query=query(), weights={"": sha})},
        blobs=blobs,
        bytes_before=held,
        bytes_after=held,
        provenance=Provenance(created_at=created_at, command="test", seed=0, versions={}),
    )


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store", create=True)


def published(store, values=(1.0,)):
    sha, info = put_tensors(store, {"weight": torch.tensor(values)})
    return store.publish(manifest({sha: info})), sha


def blob_file(store, sha):
    return Path(store.locate(f"blobs/sha256/{sha[:2]}/{sha}.safetensors"))


@given(st.binary(min_size=1, max_size=500))
def test_a_blob_comes_back_as_it_went_in(tmp_path_factory, data):
    store = open_store(tmp_path_factory.mktemp("s"), create=True)
    sha = store.put_blob(data)
    assert sha == hashlib.sha256(data).hexdigest()
    assert store.read_blob(sha) == data


def test_releases_are_numbered_and_head_is_the_last(store):
    first, _ = published(store)
    second, _ = published(store, (2.0,))
    assert [first.release, second.release] == [1, 2] == store.releases()
    assert store.manifest() == second
    store.set_head(1)
    assert store.manifest() == first


def test_a_truncated_blob_is_refused_and_named(store):
    _, sha = published(store)
    file = blob_file(store, sha)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CorruptBlobError, match=sha):
        store.read_blob(sha)
    assert [problem.path for problem in store.verify()] == [f"blobs/sha256/{sha[:2]}/{sha}.safetensors"]


def test_putting_a_blob_again_mends_a_damaged_one(store):
    _, sha = published(store)
    blob_file(store, sha).write_bytes(b"junk")
    assert put_tensors(store, {"weight": torch.tensor((1.0,))})[0] == sha
    assert store.verify() == []


def test_a_missing_blob_is_refused_and_found_by_verify(store):
    _, sha = published(store)
    blob_file(store, sha).unlink()
    with pytest.raises(MissingBlobError, match=sha):
        store.read_blob(sha)
    assert "needed by release 1" in store.verify()[0].what


def test_nothing_is_published_whose_blobs_are_absent(store):
    with pytest.raises(MissingBlobError):
        store.publish(manifest({"a" * 64: BlobInfo(tensor_bytes=4, file_bytes=8)}))
    assert store.releases() == []
    assert store.head() is None


def test_a_release_that_does_not_exist_names_those_that_do(store):
    published(store)
    with pytest.raises(MissingReleaseError, match=r"no release 9; it holds \[1\]"):
        store.manifest(9)


def test_an_empty_folder_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="gemel search"):
        open_store(tmp_path)


def test_an_unknown_key_in_a_manifest_is_named(store):
    published(store)
    path = Path(store.locate("releases/000001.json"))
    path.write_text(path.read_text().replace('"parent"', '"parnt"'))
    with pytest.raises(StoreError, match="parnt: unknown key; did you mean 'parent'"):
        store.manifest(1)


def test_a_store_name_never_leads_out_of_the_store(store):
    with pytest.raises(StoreError, match="not a blob name"):
        store.read_blob("../../etc/passwd")


def test_the_golden_manifest_still_reads_and_writes_the_same():
    text = GOLDEN.read_text()
    assert Manifest.model_validate_json(text).model_dump_json(indent=1) + "\n" == text


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    script = """
import resource, signal, sys
from gemel_ray.weights.store import open_store
from gemel_ray.spec.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    open_store(sys.argv[1], create=True).put_blob(b"x" * 5000)
except StoreError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "free space" in result.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_publisher_killed_at_any_moment_leaves_the_previous_head_whole(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    published(store)
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_store as t\n"
        "from gemel_ray.weights.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "for n in range(100000): t.published(store, (float(n),))\n"
    )
    for lines in (1, 1, 1):
        child = subprocess.Popen(
            [sys.executable, "-c", script, store.locate().rstrip("/"), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "ready"
        before = store.head()
        while store.head() == before:
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert store.manifest().release in store.releases()
        assert all("interrupted" in problem.what for problem in store.verify()), lines


def test_two_publishers_at_once_never_overwrite_each_other(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_store as t\n"
        "from gemel_ray.weights.store import open_store\n"
        "store = open_store(sys.argv[1], create=True)\n"
        "for n in range(20): t.published(store, (float(n), float(sys.argv[3])))\n"
    )
    folder = str(Path(__file__).parent)
    children = [
        subprocess.Popen([sys.executable, "-c", script, store.locate().rstrip("/"), folder, who]) for who in "12"
    ]
    assert [child.wait() for child in children] == [0, 0]
    assert store.releases() == list(range(1, 41))
    assert store.verify() == []


def shared_states():
    weight = torch.randn(3, 4)
    states = {name: {"fc.weight": weight.clone(), "bn.bias": torch.randn(2)} for name in ("a", "b")}
    members = (LayerRef("a", "fc"), LayerRef("b", "fc"))
    return states, MergeConfiguration(shared=(SharedLayer(signature="s", layer_bytes=48, members=members),))


def test_a_shared_layer_is_stored_once_and_loads_as_one_tensor(store):
    states, configuration = shared_states()
    names = {member: ("weight",) for member in configuration.shared[0].members}
    weights, blobs = store_models(store, states, configuration, names)
    assert weights["a"]["fc"] == weights["b"]["fc"]
    assert sum(info.tensor_bytes for info in blobs.values()) == 48 + 8 + 8
    read = BlobReader(store)
    loaded = {name: load_state(read, weights[name]) for name in states}
    assert loaded["a"]["fc.weight"] is loaded["b"]["fc.weight"]
    assert loaded["a"]["fc.weight"].data_ptr() == loaded["b"]["fc.weight"].data_ptr()
    assert torch.equal(loaded["b"]["bn.bias"], states["b"]["bn.bias"])


def test_layers_that_do_not_hold_equal_weights_are_not_stored_as_one(store):
    states, configuration = shared_states()
    states["b"]["fc.weight"][0, 0] += 1
    names = {member: ("weight",) for member in configuration.shared[0].members}
    with pytest.raises(StoreError, match="a:fc and b:fc"):
        store_models(store, states, configuration, names)

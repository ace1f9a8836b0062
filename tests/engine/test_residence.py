"""Weights on the device: held once, freed when evicted, whole or absent."""

import gc
import mmap
import os
import random
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemel_ray.engine import residence as residence_module
from gemel_ray.engine.blobs import open_blob
from gemel_ray.engine.residence import Residence
from gemel_ray.spec.errors import CorruptBlobError, MissingBlobError

BIG = 16_000_000
STATM = Path("/proc/self/statm")
# Linux gives an input/output error to whoever reads the first page of a process's memory, as a failing disk does.
UNREADABLE = Path("/proc/self/mem")
needs_proc = pytest.mark.skipif(not STATM.exists(), reason="reads the process's size from /proc")


def process_bytes():
    """Bytes of this process that are in memory right now."""
    return int(STATM.read_text().split()[1]) * mmap.PAGESIZE


@pytest.fixture
def blob(tmp_path):
    path = tmp_path / "blob.safetensors"
    torch.manual_seed(0)
    tensors = {
        "weight": torch.randn(64, 3, 7, 7),
        "half": torch.randn(5).half(),
        "count": torch.tensor(3),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 4),
    }
    save_file(tensors, path)
    return open_blob(path)


@pytest.fixture
def big_blob(tmp_path):
    path = tmp_path / "big.safetensors"
    save_file({"weight": torch.ones(BIG)}, path)
    return open_blob(path)


def load_and_read(residence, weight, blob):
    """Its tensors, just loaded."""
    residence.load(weight, blob, blob.data_bytes)
    return residence.tensors(weight)


def same_as_file(tensors, blob):
    expected = load_file(blob.path)
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_what_is_loaded_equals_what_safetensors_reads(blob, device):
    residence = Residence(device)
    residence.load("a", blob, blob.data_bytes)
    expected = load_file(blob.path)
    assert residence.tensors("a").keys() == expected.keys()
    for name, tensor in residence.tensors("a").items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.device.type == device.type
        assert torch.equal(tensor.cpu(), expected[name])


def test_odd_sizes_cost_no_alignment_and_no_padding(tmp_path, device):
    """Three floats in the middle of a file, and all that follows them there would start badly."""
    tensors = {
        "a": torch.arange(3.0),
        "b": torch.rand(16, 4),
        "c": torch.rand(5),
        "d": torch.rand(64),
        "n": torch.tensor(1),
    }
    save_file(tensors, tmp_path / "odd.safetensors")
    blob, residence = open_blob(tmp_path / "odd.safetensors"), Residence(device)
    residence.load("w", blob, blob.data_bytes)
    held = residence.tensors("w")
    assert all(torch.equal(held[name].cpu(), tensor) for name, tensor in tensors.items())
    assert held["b"].data_ptr() % 64 == held["d"].data_ptr() % 64 == 0
    assert residence.allocated_bytes() == sum(tensor.nbytes for tensor in tensors.values())


def test_memory_taken_is_exactly_the_bytes_of_the_tensors(blob, big_blob, device):
    residence = Residence(device)
    residence.load("a", blob, blob.data_bytes)
    residence.load("b", big_blob, big_blob.data_bytes)
    held = sum(t.nbytes for t in (*load_file(blob.path).values(), *load_file(big_blob.path).values()))
    assert residence.allocated_bytes() == held


@pytest.mark.parametrize("reload_from", ["memory", "disk"])
def test_a_file_larger_than_the_staging_buffers_arrives_whole_every_time(tmp_path, device, reload_from):
    values = torch.arange(20_000_000, dtype=torch.int32)
    save_file({"values": values}, tmp_path / "large.safetensors")
    residence, blob = Residence(device, reload_from), open_blob(tmp_path / "large.safetensors")
    for _ in range(2):
        residence.load("a", blob, values.nbytes)
        assert torch.equal(residence.tensors("a")["values"].cpu(), values)
        residence.evict("a")


def test_what_is_evicted_is_neither_told_nor_counted(blob):
    residence = Residence(torch.device("cpu"))
    residence.load("a", blob, blob.data_bytes)
    residence.evict("a")
    assert "a" not in residence
    assert residence.weights == ()
    assert residence.allocated_bytes() == 0


def test_in_the_same_place_again_the_tensors_are_those_of_before(blob):
    residence = Residence(torch.device("cpu"), budget_bytes=10 * blob.data_bytes)
    before = load_and_read(residence, "a", blob)
    residence.evict("a")
    again = load_and_read(residence, "a", blob)
    assert again["weight"] is before["weight"]
    assert same_as_file(again, blob)


def test_in_another_place_or_from_another_file_tensors_are_made_anew(blob, big_blob):
    residence = Residence(torch.device("cpu"), budget_bytes=10 * big_blob.data_bytes)
    before = load_and_read(residence, "a", blob)
    residence.evict("a")
    assert same_as_file(load_and_read(residence, "b", big_blob), big_blob)
    elsewhere = load_and_read(residence, "a", blob)
    assert elsewhere["weight"].data_ptr() != before["weight"].data_ptr()
    assert same_as_file(elsewhere, blob)
    residence.evict("a")
    assert same_as_file(load_and_read(residence, "a", big_blob), big_blob)


def test_weights_that_come_and_go_in_any_order_are_those_of_their_files(tmp_path):
    rng, residence, blobs = random.Random(11), Residence(torch.device("cpu"), budget_bytes=1 << 20), {}
    for name in "abcdefgh":
        tensors = {f"t{at}": torch.randn(rng.randrange(1, 9_000)) for at in range(3)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        blobs[name] = open_blob(tmp_path / f"{name}.safetensors")
    for _ in range(300):
        name = rng.choice("abcdefgh")
        if name in residence:
            residence.evict(name)
        else:
            residence.load(name, blobs[name], blobs[name].data_bytes)
        for held in residence.weights:
            assert same_as_file(residence.tensors(held), blobs[held])


def test_so_many_tensors_are_remembered_and_no_more(blob, monkeypatch):
    monkeypatch.setattr(residence_module, "_MOST_LEFT", 2 * len(blob.tensors))
    residence = Residence(torch.device("cpu"), budget_bytes=10 * blob.data_bytes)
    first = {name: load_and_read(residence, name, blob) for name in "abc"}
    for name in "abc":
        residence.evict(name)
    gone = weakref.ref(first.pop("a")["weight"])
    assert gone() is None
    assert load_and_read(residence, "c", blob)["weight"] is first["c"]["weight"]


@needs_proc
def test_eviction_gives_the_memory_back_to_the_system(big_blob):
    residence = Residence(torch.device("cpu"))
    gc.collect()
    before = process_bytes()
    residence.load("a", big_blob, big_blob.data_bytes)
    loaded = process_bytes() - before
    residence.evict("a")
    residence.arena.trim()
    left = process_bytes() - before
    assert loaded > 0.9 * big_blob.data_bytes
    assert left < 0.1 * big_blob.data_bytes


@needs_proc
def test_loading_again_and_again_does_not_grow_the_process(big_blob):
    residence = Residence(torch.device("cpu"))
    grown = []
    for _ in range(12):
        residence.load("a", big_blob, big_blob.data_bytes)
        residence.evict("a")
        grown.append(process_bytes())
    assert grown[-1] - grown[1] < 0.2 * big_blob.data_bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_eviction_frees_memory_of_the_gpu(big_blob):
    residence = Residence(torch.device("cuda"))
    before = torch.cuda.memory_allocated()
    residence.load("a", big_blob, big_blob.data_bytes)
    assert torch.cuda.memory_allocated() - before >= big_blob.data_bytes
    residence.evict("a")
    assert torch.cuda.memory_allocated() == before


def test_a_blob_of_another_size_than_reserved_is_refused_before_it_takes_memory(blob):
    residence = Residence(torch.device("cpu"))
    with pytest.raises(CorruptBlobError, match=f"holds {blob.data_bytes} bytes of tensors, the manifest says 5"):
        residence.load("a", blob, 5)
    assert residence.weights == ()


def test_a_file_cut_short_is_named_when_opened_and_when_loaded(blob, device):
    data = blob.path.read_bytes()
    blob.path.write_bytes(data[:-7])
    with pytest.raises(CorruptBlobError, match=r"blob\.safetensors has \d+ bytes where"):
        open_blob(blob.path)
    residence = Residence(device)
    with pytest.raises(CorruptBlobError, match="ends 7 bytes early"):
        residence.load("a", blob, blob.data_bytes)
    assert residence.weights == ()


@pytest.mark.parametrize("data", [b"", b"\x05", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, data):
    path = tmp_path / "blob.safetensors"
    path.write_bytes(data)
    with pytest.raises(CorruptBlobError, match=r"blob\.safetensors"):
        open_blob(path)


def test_a_file_that_is_gone_is_missing(blob):
    blob.path.unlink()
    with pytest.raises(MissingBlobError):
        open_blob(blob.path)
    with pytest.raises(MissingBlobError):
        Residence(torch.device("cpu")).load("a", blob, blob.data_bytes)


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that gives an input/output error")
def test_a_file_that_the_disk_no_longer_gives_is_missing_and_leaves_nothing(blob):
    blob.path.unlink()
    blob.path.symlink_to(UNREADABLE)
    residence = Residence(torch.device("cpu"))
    with pytest.raises(MissingBlobError, match=r"cannot be read \(Input/output error\); fetch it again"):
        residence.load("a", replace(blob, data_offset=0), blob.data_bytes)
    assert residence.weights == ()


def is_cached(path):
    """Whether the system would give the file's first bytes without asking the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what it keeps of files")
def test_a_box_whose_memory_is_the_budget_keeps_no_copy_of_weights_in_the_page_cache(blob):
    with blob.path.open("rb") as file:
        os.fsync(file.fileno())
    Residence(torch.device("cpu"), "memory").load("w", blob, blob.data_bytes)
    if not is_cached(blob.path):
        pytest.skip("this file system keeps nothing of files in memory")
    Residence(torch.device("cpu"), "disk").load("w", blob, blob.data_bytes)
    assert not is_cached(blob.path)

"""Blobs kept in host memory: once read they are there, as long as somebody knows their file and there is room."""

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gemel_ray.engine.arena import arena_for
from gemel_ray.engine.blobs import open_blob
from gemel_ray.engine.copying import HostCopier, _parts, _read
from gemel_ray.engine.host_copies import CHUNK_BYTES, SLAB_BYTES, HostCopies, side_by_side
from gemel_ray.spec.errors import CorruptBlobError

CPU = torch.device("cpu")


@pytest.fixture
def blob_of(tmp_path):
    """A blob of so many chunks and some odd tensors, which lie in memory in another order than in the file."""

    def make(name, chunks):
        tensors = {
            "a": torch.arange(3.0),
            "b": torch.randint(0, 256, (int(chunks * CHUNK_BYTES) - 300,), dtype=torch.uint8),
            "c": torch.rand(16, 4),
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return open_blob(tmp_path / f"{name}.safetensors")

    return make


def reading(blob, times):
    """Fills the parts from the file, and counts."""

    def fill(parts):
        times.append(blob.path.name)
        _read(blob, parts)

    return fill


def data_of(blob):
    return blob.path.read_bytes()[blob.data_offset :]


def joined(parts):
    return b"".join(part.numpy().tobytes() for part in parts)


def test_a_blob_is_read_once_and_then_there(blob_of):
    kept, blob, times = HostCopies(SLAB_BYTES, pin=False), blob_of("one", 2.5), []
    first = kept.bytes_of(blob, reading(blob, times))
    again = kept.bytes_of(blob, reading(blob, times))
    assert times == ["one.safetensors"]
    assert joined(first) == joined(again) == data_of(blob)
    assert [part.data_ptr() for part in first] == [part.data_ptr() for part in again]
    assert kept.taken_bytes == SLAB_BYTES


def test_what_is_kept_reaches_its_places_in_memory(blob_of):
    """As a copy straight from the file does."""
    kept, blob, arena = HostCopies(SLAB_BYTES, pin=False), blob_of("one", 3.2), arena_for(CPU, 1 << 26)
    assert len(blob.runs) > 1
    expected, piece = HostCopier().copy_in(blob, arena), arena.take(blob.data_bytes)
    for part, source in side_by_side(_parts(piece, blob), kept.bytes_of(blob, reading(blob, []))):
        part.copy_(source)
    assert torch.equal(piece, expected)
    place = blob.tensors["c"]
    found = piece[place.start : place.end].view(torch.float32).view(16, 4)
    assert torch.equal(found, load_file(blob.path)["c"])


def test_without_room_nothing_is_kept_until_a_blob_is_known_to_nobody(blob_of):
    kept = HostCopies(SLAB_BYTES + SLAB_BYTES // 2, pin=False)
    most = SLAB_BYTES / CHUNK_BYTES
    large, other = blob_of("large", most - 1), blob_of("other", 1.5)
    assert kept.bytes_of(large, reading(large, [])) is not None
    assert kept.bytes_of(other, reading(other, [])) is None
    del large
    gc.collect()
    assert joined(kept.bytes_of(other, reading(other, []))) == data_of(other)
    assert kept.taken_bytes == SLAB_BYTES


def test_what_cannot_be_read_leaves_nothing_behind(blob_of):
    kept, blob = HostCopies(SLAB_BYTES, pin=False), blob_of("one", SLAB_BYTES / CHUNK_BYTES - 1)
    whole = blob.path.read_bytes()
    blob.path.write_bytes(whole[:-1])
    with pytest.raises(CorruptBlobError, match="ends 1 bytes early"):
        kept.bytes_of(blob, reading(blob, []))
    blob.path.write_bytes(whole)
    assert joined(kept.bytes_of(blob, reading(blob, []))) == data_of(blob)


def test_nothing_is_kept_where_nothing_may_be(blob_of):
    kept, blob = HostCopies(SLAB_BYTES - 1, pin=False), blob_of("one", 1)
    assert kept.bytes_of(blob, reading(blob, [])) is None
    assert kept.taken_bytes == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned here")
def test_where_no_memory_can_be_pinned_weights_come_from_files(blob_of, caplog):
    kept, blob = HostCopies(10 * SLAB_BYTES), blob_of("one", 1)
    assert kept.bytes_of(blob, reading(blob, [])) is None
    assert kept.bytes_of(blob, reading(blob, [])) is None
    assert [record.getMessage() for record in caplog.records] == [
        "no more pinned memory after 0 bytes; other weights come from files"
    ]


def cut(data, sizes):
    return list(data.split(sizes))


@given(st.integers(1, 60).flatmap(lambda total: st.tuples(*[cuts_of(total)] * 2)))
def test_parts_come_side_by_side_whatever_they_were_before(sizes):
    total = sum(sizes[0])
    one, other = torch.arange(total), torch.arange(total) + 100
    pairs = list(side_by_side(cut(one, sizes[0]), cut(other, sizes[1])))
    assert all(torch.equal(left + 100, right) and left.numel() for left, right in pairs)
    assert torch.equal(torch.cat([left for left, _ in pairs]), one)
    assert len(pairs) <= len(sizes[0]) + len(sizes[1])


def cuts_of(total):
    """Sizes, some of them 0, that add up to so many."""
    cuts = st.lists(st.integers(0, total), max_size=6).map(sorted)
    return cuts.map(lambda at: [end - start for start, end in zip([0, *at], [*at, total], strict=True)])

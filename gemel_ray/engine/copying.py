"""A blob's bytes from local disk into a piece of the arena."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import FileIO
from typing import Literal, Protocol

import torch

from gemel_ray.engine.arena import Arena
from gemel_ray.engine.blobs import BlobFile
from gemel_ray.engine.host_copies import HostCopies, side_by_side
from gemel_ray.engine.host_memory import host_memory_bytes
from gemel_ray.spec.errors import CorruptBlobError, MissingBlobError

# Where evicted weights come back from. 'memory': on a CPU the system keeps files it has read in free memory; for a GPU
# they are kept pinned, as long as there is room. 'disk': all is forgotten, as on a box whose RAM is the budget (a
# Jetson, a small PC).
ReloadFrom = Literal["memory", "disk"]

# Two pinned buffers of this size: one is filled from disk while the other crosses to the GPU.
STAGING_BYTES = 32 << 20
# Of the host's free memory, at most, for weights that are kept pinned for a GPU.
_PINNED_FRACTION = 0.5
# Systems take at least so many in one read (IOV_MAX).
_MOST_PARTS = 1024


class Copier(Protocol):
    """The way into one device's memory; used by one thread at a time."""

    def copy_in(self, blob: BlobFile, arena: Arena, former: torch.Tensor | None = None) -> torch.Tensor:
        """The blob's tensors on the device, uint8 and flat, fully arrived; where each lies, the blob says.

        In the piece that it was in before, if that can be had again. Raises MissingBlobError, or CorruptBlobError when
        the file ends early; the piece is given back then.
        """
        ...


def copier_for(device: torch.device, reload_from: ReloadFrom = "memory") -> Copier:
    """The copier of a CPU or CUDA device."""
    return CudaCopier(device, reload_from) if device.type == "cuda" else HostCopier(reload_from)


class HostCopier:
    """Reads straight into the memory taken: one copy, by the kernel, with the interpreter lock released."""

    def __init__(self, reload_from: ReloadFrom = "memory") -> None:
        self._reload_from = reload_from

    def copy_in(self, blob: BlobFile, arena: Arena, former: torch.Tensor | None = None) -> torch.Tensor:
        """See Copier."""
        with _at_data(blob) as file, _piece(arena, blob.data_bytes, former) as piece:
            _fill(_parts(piece, blob), file)
            _leave(file, self._reload_from)
        return piece


class CudaCopier:
    """Copies from pinned memory on a stream of its own, so that computing goes on meanwhile: from where a blob is kept,
    or else through two buffers."""

    def __init__(self, device: torch.device, reload_from: ReloadFrom = "memory") -> None:
        self.device = device
        self._reload_from = reload_from
        self.stream = torch.cuda.Stream(device)
        self._staging = [torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._emptied = [torch.cuda.Event() for _ in range(2)]
        keeps_bytes = int(host_memory_bytes()[1] * _PINNED_FRACTION) if reload_from == "memory" else 0
        self._kept = HostCopies(keeps_bytes)

    def copy_in(self, blob: BlobFile, arena: Arena, former: torch.Tensor | None = None) -> torch.Tensor:
        """See Copier. Waits for its own stream only."""
        kept = self._kept.bytes_of(blob, partial(_read, blob))
        # Taken under our stream, too: the allocator may hand us memory that kernels queued on another still use.
        with torch.cuda.stream(self.stream), _piece(arena, blob.data_bytes, former) as piece:
            if kept is None:
                self._copy_staged(blob, piece)
            else:
                for part, source in side_by_side(_parts(piece, blob), kept):
                    part.copy_(source, non_blocking=True)
            self.stream.synchronize()
        return piece

    def _copy_staged(self, blob: BlobFile, piece: torch.Tensor) -> None:
        with _at_data(blob) as file:
            pieces = (part for run in _parts(piece, blob) for part in run.split(STAGING_BYTES))
            for number, part in enumerate(pieces):
                staging, emptied = self._staging[number % 2][: part.numel()], self._emptied[number % 2]
                emptied.synchronize()
                _fill([staging], file)
                part.copy_(staging, non_blocking=True)
                emptied.record(self.stream)
            _leave(file, self._reload_from)


def _read(blob: BlobFile, parts: Sequence[torch.Tensor]) -> None:
    """The blob's data from its file. The system need not keep it as well."""
    with _at_data(blob) as file:
        _fill(parts, file)
        _leave(file, "disk")


@contextmanager
def _piece(arena: Arena, count_bytes: int, former: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """A piece of the arena to be filled; given back when that fails."""
    again = former is not None and arena.take_again(former)
    piece = former if former is not None and again else arena.take(count_bytes)
    try:
        yield piece
    except BaseException:
        arena.give_back(piece)
        raise


def _parts(piece: torch.Tensor, blob: BlobFile) -> list[torch.Tensor]:
    """The parts of memory that the blob's bytes go to, in the order of the file."""
    if len(blob.runs) == 1:
        return [piece]
    sizes = sorted((run.start, run.bytes) for run in blob.runs)
    by_start = dict(zip((start for start, _ in sizes), piece.split([count for _, count in sizes]), strict=True))
    return [by_start[run.start] for run in blob.runs]


def _at_data(blob: BlobFile) -> FileIO:
    try:
        file = FileIO(blob.path)
    except OSError as error:
        raise MissingBlobError(f"{blob.path.name} cannot be read ({error.strerror}); fetch it again") from error
    file.seek(blob.data_offset)
    return file


def _leave(file: FileIO, reload_from: ReloadFrom) -> None:
    """Let the system forget what was read, where its memory is not there for it; elsewhere than Linux it cannot."""
    if reload_from == "disk" and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _fill(parts: Iterable[torch.Tensor], file: FileIO) -> None:
    """Read on into one part of memory after the other, many of them in one call."""
    left = [part.numpy().data for part in parts if part.numel()]
    while left:
        count = _read_on(left[:_MOST_PARTS], file)
        if not count:
            short_bytes = sum(len(view) for view in left)
            raise CorruptBlobError(f"{file.name} ends {short_bytes} bytes early; fetch it from the store again")
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if left:
            left[0] = left[0][count:]


def _read_on(parts: Sequence[memoryview], file: FileIO) -> int:
    """How many bytes came. What a failing disk no longer gives may be had from the store again."""
    try:
        return os.readv(file.fileno(), parts)
    except OSError as error:
        raise MissingBlobError(f"{file.name} cannot be read ({error.strerror}); fetch it again") from error

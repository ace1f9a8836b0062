"""Blobs in pinned host memory, from where a GPU takes them by itself.

A file that the system has cached is copied by a core first, at every load. What this is worth was not measured yet: no
GPU was at hand.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from gemel_ray.engine.blobs import BlobFile

log = logging.getLogger(__name__)

# Torch rounds pinned memory up to the next power of two, and takes milliseconds to get it: it is taken in slabs, and
# dealt out in chunks, so that a small blob wastes little and memory that came back is of use for any other.
SLAB_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20

Fill = Callable[[Sequence[torch.Tensor]], None]


class HostCopies:
    """Keeps each blob that passes until its BlobFile is gone, if there is room; used by one thread at a time."""

    def __init__(self, most_bytes: int, *, pin: bool = True) -> None:
        """`most_bytes` bounds what is taken from the system in all; 0: nothing is kept."""
        self._most_slabs = most_bytes // SLAB_BYTES
        self._pin = pin
        self._slabs = 0
        self._free: deque[torch.Tensor] = deque()
        self._held: weakref.WeakKeyDictionary[BlobFile, list[torch.Tensor]] = weakref.WeakKeyDictionary()

    @property
    def taken_bytes(self) -> int:
        """What was taken from the system."""
        return self._slabs * SLAB_BYTES

    def bytes_of(self, blob: BlobFile, fill: Fill) -> list[torch.Tensor] | None:
        """The blob's data as it is in its file, in parts; None where there is no room for it.

        `fill` writes it into these parts if it is not there yet; nothing is kept when that raises.
        """
        if (held := self._held.get(blob)) is None:
            chunks = self._taken(-(-blob.data_bytes // CHUNK_BYTES))
            if chunks is None:
                return None
            try:
                fill(_cut(chunks, blob.data_bytes))
            except BaseException:
                self._free.extend(chunks)
                raise
            self._held[blob] = held = chunks
            # With the file's last reader, from whatever thread: extending a deque is atomic.
            weakref.finalize(blob, self._free.extend, chunks).atexit = False
        return _cut(held, blob.data_bytes)

    def _taken(self, count: int) -> list[torch.Tensor] | None:
        while len(self._free) < count:
            if not self._grow():
                return None
        return [self._free.popleft() for _ in range(count)]

    def _grow(self) -> bool:
        if self._slabs >= self._most_slabs:
            return False
        try:
            slab = torch.empty(SLAB_BYTES, dtype=torch.uint8, pin_memory=self._pin)
        except RuntimeError:
            log.warning("no more pinned memory after %d bytes; other weights come from files", self.taken_bytes)
            self._most_slabs = self._slabs
            return False
        self._slabs += 1
        self._free.extend(slab.split(CHUNK_BYTES))
        return True


def _cut(chunks: Sequence[torch.Tensor], count_bytes: int) -> list[torch.Tensor]:
    """The first so many bytes of all chunks together."""
    left = range(count_bytes, 0, -CHUNK_BYTES)
    return [chunk[: min(rest, CHUNK_BYTES)] for chunk, rest in zip(chunks, left, strict=True)]


def side_by_side(
    one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Two lists of flat tensors, equally long in sum, cut so that their parts are, too."""
    ones, others = (deque(part for part in parts if part.numel()) for parts in (one, other))
    while ones and others:
        count = min(ones[0].numel(), others[0].numel())
        yield _next_part(ones, count), _next_part(others, count)


def _next_part(parts: deque[torch.Tensor], count: int) -> torch.Tensor:
    part = parts.popleft()
    if part.numel() > count:
        parts.appendleft(part[count:])
    return part[:count]

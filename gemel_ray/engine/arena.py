"""The arena: the memory that weights live in, in pieces; what is unloaded makes room for what is loaded next."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from typing import Protocol

import torch

_PAGE_BYTES = mmap.PAGESIZE
# Addresses cost nothing, memory does. With so many times the budget of them a piece finds an unbroken stretch however
# the free memory lies about, so that fragmentation wastes addresses and never memory.
_ADDRESSES_PER_BYTE = 4
# Python names this flag from 3.13 on; the value is Linux's. Without it a system may refuse so many addresses.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

Range = tuple[int, int]


class Arena(Protocol):
    """Memory for weights on one device. Thread-safe."""

    def take(self, count_bytes: int) -> torch.Tensor:
        """A flat uint8 tensor of exactly that many bytes."""
        ...

    def give_back(self, piece: torch.Tensor) -> None:
        """Nobody uses the piece any more. Its memory stays at hand for the next one, within the limit."""
        ...

    @property
    def retakes(self) -> bool:
        """Whether a piece that was given back holds no memory, so that who remembers it may take it again."""
        ...

    def take_again(self, piece: torch.Tensor) -> bool:
        """Take a piece that was given back just as it was, if it is free and its memory still at hand."""
        ...

    def limit(self, most_bytes: int) -> None:
        """From now on hold no more than that: memory that is only at hand goes back to the system first."""
        ...

    def trim(self) -> None:
        """Give back to the system what no piece uses."""
        ...

    @property
    def held_bytes(self) -> int:
        """Memory that is held: pieces in use, and what is at hand for others. In whole pages."""
        ...


def arena_for(device: torch.device, budget_bytes: int) -> Arena:
    """The arena of a device, for weights of `budget_bytes` in sum."""
    if device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE"):
        return HostArena(budget_bytes)
    return AllocatorArena(device)


class HostArena:
    """One stretch of addresses; memory stands behind those parts of it that hold weights, or have just done.

    Loading into memory that is at hand spares the system to clear new pages: a 10 MB blob arrived at 15.1 GB/s rather
    than 8.8, one of 40 MB at 5.2 rather than 4.2 (2 cores; a plain copy made 12.9 and 6.7).
    """

    def __init__(self, budget_bytes: int) -> None:
        self._most_bytes = budget_bytes
        self._span_bytes = _whole_pages(budget_bytes) * _ADDRESSES_PER_BYTE
        # Private, because Linux gives shared mappings no large pages.
        self._pages = mmap.mmap(-1, self._span_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self._lock = threading.Lock()
        # By first address, ascending.
        self._used: list[Range] = []
        # Without a piece, but with memory behind them.
        self._warm: list[Range] = []
        self._pages.madvise(mmap.MADV_HUGEPAGE)
        self._base = torch.frombuffer(self._pages, dtype=torch.uint8, count=1).data_ptr()

    @property
    def held_bytes(self) -> int:
        """See Arena."""
        with self._lock:
            return _total(self._used) + _total(self._warm)

    @property
    def retakes(self) -> bool:
        """See Arena."""
        return True

    def take_again(self, piece: torch.Tensor) -> bool:
        """See Arena."""
        wanted = self._range(piece)
        with self._lock:
            if _overlap(self._warm, wanted) < wanted[1] - wanted[0]:
                return False
            self._use(wanted)
        return True

    def take(self, count_bytes: int) -> torch.Tensor:
        """See Arena. Beyond all addresses, which no budget kept should reach, MemoryError."""
        if not count_bytes:
            return torch.empty(0, dtype=torch.uint8)
        with self._lock:
            start = self._place(_whole_pages(count_bytes))
            self._use((start, start + _whole_pages(count_bytes)))
            # Before the new pages are touched.
            self._trim_to(self._most_bytes)
        # A storage of its own, so that every piece tells its own size.
        return torch.frombuffer(self._pages, dtype=torch.uint8, offset=start, count=count_bytes)

    def give_back(self, piece: torch.Tensor) -> None:
        """See Arena."""
        if not piece.numel():
            return
        used = self._range(piece)
        with self._lock:
            self._used.remove(used)
            self._warm = _joined([*self._warm, used])

    def limit(self, most_bytes: int) -> None:
        """See Arena."""
        with self._lock:
            self._most_bytes = most_bytes
            self._trim_to(most_bytes)

    def trim(self) -> None:
        """See Arena."""
        with self._lock:
            self._trim_to(0)

    def _range(self, piece: torch.Tensor) -> Range:
        """Its addresses, none for an empty one."""
        start = piece.data_ptr() - self._base if piece.numel() else 0
        return start, start + _whole_pages(piece.numel())

    def _trim_to(self, most_bytes: int) -> None:
        """The highest addresses go first, which are taken last where nothing is at hand."""
        over_bytes = _total(self._used) + _total(self._warm) - most_bytes
        while over_bytes > 0 and self._warm:
            start, end = self._warm.pop()
            cut = max(start, end - _whole_pages(over_bytes))
            self._pages.madvise(mmap.MADV_DONTNEED, cut, end - cut)
            over_bytes -= end - cut
            if start < cut:
                self._warm.append((start, cut))

    def _place(self, count_bytes: int) -> int:
        """Where the least memory is missing, in the tightest such place, at the lowest address of equals."""
        places = [place for gap in self._gaps(count_bytes) for place in self._places(gap, count_bytes)]
        if not places:
            raise MemoryError(f"no {count_bytes} free addresses in a row; weights exceed the budget many times")
        return min(places)[-1]

    def _gaps(self, count_bytes: int) -> Iterator[Range]:
        """Free addresses in a row, as many as wanted at least."""
        start = 0
        for used_start, used_end in (*self._used, (self._span_bytes, self._span_bytes)):
            if used_start - start >= count_bytes:
                yield start, used_start
            start = used_end

    def _places(self, gap: Range, count_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Of a gap's beginning, and of where it holds memory: what is missing there, what is left over, the address."""
        yield count_bytes, 0, gap[0]
        held = [each for each in self._warm if gap[0] <= each[0] < gap[1]]
        for start, end in held:
            first = min(start, gap[1] - count_bytes)
            missing_bytes = count_bytes - _overlap(held, (first, first + count_bytes))
            yield missing_bytes, end - start - (count_bytes - missing_bytes), first

    def _use(self, piece: Range) -> None:
        self._used = sorted([*self._used, piece])
        self._warm = [left for each in self._warm for left in _without(each, piece)]


class AllocatorArena:
    """Pieces by torch's own allocator: on CUDA it keeps what is given back for the next piece, too.

    With expandable segments it maps memory into one stretch of addresses, as HostArena does.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def retakes(self) -> bool:
        """See Arena. Here a piece is its memory."""
        return False

    def take_again(self, piece: torch.Tensor) -> bool:
        """See Arena."""
        return False

    @property
    def held_bytes(self) -> int:
        """See Arena; on CUDA, what the allocator holds for whomever."""
        if self._device.type == "cuda":
            return torch.cuda.memory_reserved(self._device)
        return self._held_bytes

    def take(self, count_bytes: int) -> torch.Tensor:
        """See Arena."""
        piece = torch.empty(count_bytes, dtype=torch.uint8, device=self._device)
        with self._lock:
            self._held_bytes += count_bytes
        return piece

    def give_back(self, piece: torch.Tensor) -> None:
        """See Arena. The memory goes with the last reference."""
        with self._lock:
            self._held_bytes -= piece.numel()

    def limit(self, most_bytes: int) -> None:
        """See Arena."""
        if self.held_bytes > most_bytes:
            self.trim()

    def trim(self) -> None:
        """See Arena."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _whole_pages(count_bytes: int) -> int:
    return -(-count_bytes // _PAGE_BYTES) * _PAGE_BYTES


def _total(ranges: list[Range]) -> int:
    return sum(end - start for start, end in ranges)


def _overlap(ranges: list[Range], other: Range) -> int:
    return sum(max(0, min(end, other[1]) - max(start, other[0])) for start, end in ranges)


def _without(one: Range, other: Range) -> list[Range]:
    """What of one range lies outside the other."""
    parts = [(one[0], min(one[1], other[0])), (max(one[0], other[1]), one[1])]
    return [(start, end) for start, end in parts if start < end]


def _joined(ranges: list[Range]) -> list[Range]:
    """The same addresses in as few ranges as possible, ascending."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined

"""Residence: which weight sets are on the device, and their tensors."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from gemel_ray.engine.arena import arena_for
from gemel_ray.engine.blobs import BlobFile, TensorPlace
from gemel_ray.engine.copying import ReloadFrom, copier_for
from gemel_ray.spec.errors import CorruptBlobError

Tensors = Mapping[str, torch.Tensor]

# Of addresses, where no budget is given: memory is taken only for what is loaded.
_AMPLE_BYTES = 16 << 30
# So many tensors are remembered after their weights went, half a kilobyte each: 50 models of 300.
_MOST_LEFT = 15_000


class _Held(NamedTuple):
    """A weight set in memory, or where it was."""

    blob: BlobFile
    piece: torch.Tensor
    tensors: Tensors


class _Left:
    """Weight sets that went, the latest of them: in the same place again, their tensors need not be made anew, which
    takes a third of the time that hundreds of small ones take to load. Thread-safe."""

    def __init__(self) -> None:
        self._sets: dict[str, _Held] = {}
        self._tensors = 0
        self._lock = threading.Lock()

    def put(self, weight: str, held: _Held) -> None:
        """Remember it, and forget what went first."""
        with self._lock:
            self._pop(weight)
            self._sets[weight] = held
            self._tensors += len(held.tensors)
            while self._tensors > _MOST_LEFT:
                self._pop(next(iter(self._sets)))

    def pop(self, weight: str, blob: BlobFile) -> _Held | None:
        """What is remembered of that weight set, as that file holds it."""
        with self._lock:
            held = self._pop(weight)
        return held if held is not None and held.blob is blob else None

    def _pop(self, weight: str) -> _Held | None:
        held = self._sets.pop(weight, None)
        self._tensors -= len(held.tensors) if held is not None else 0
        return held


class Residence:
    """Weight sets in the device's memory, each held once whoever uses it.

    Keeps no account of the budget: the device reserves bytes in its ledger before it calls `load` and releases them
    after `evict`. Loads come from one thread at a time.
    """

    def __init__(
        self, device: torch.device, reload_from: ReloadFrom = "memory", *, budget_bytes: int = _AMPLE_BYTES
    ) -> None:
        """`budget_bytes` is the arena's size: what weights may take in sum."""
        self.device = device
        self.arena = arena_for(device, budget_bytes)
        self._copier = copier_for(device, reload_from)
        self._held: dict[str, _Held] = {}
        self._left = _Left()

    def load(self, weight: str, blob: BlobFile, expected_bytes: int) -> None:
        """Copy one blob in; it is there when this returns, and nothing of it when this raises.

        Raises CorruptBlobError, before anything is allocated, when the blob is not of the size that was reserved.
        """
        if blob.data_bytes != expected_bytes:
            raise CorruptBlobError(
                f"{blob.path.name} holds {blob.data_bytes} bytes of tensors, the manifest says {expected_bytes}; "
                "fetch it from the store again"
            )
        left = self._left.pop(weight, blob)
        piece = self._copier.copy_in(blob, self.arena, left.piece if left else None)
        is_as_before = left is not None and left.piece is piece
        self._held[weight] = left if left and is_as_before else _Held(blob, piece, _views(piece, blob.tensors))

    def evict(self, weight: str) -> None:
        """Free a weight set's memory for others at once; nobody may be computing with it. See Arena.trim, too."""
        held = self._held.pop(weight)
        self.arena.give_back(held.piece)
        if self.arena.retakes:
            self._left.put(weight, held)

    def __contains__(self, weight: str) -> bool:
        """Whether a weight set has fully arrived."""
        return weight in self._held

    def tensors(self, weight: str) -> Tensors:
        """A resident weight set's tensors by short name."""
        return self._held[weight].tensors

    @property
    def weights(self) -> tuple[str, ...]:
        """The weight sets that have fully arrived."""
        return tuple(self._held)

    def allocated_bytes(self) -> int:
        """Bytes of memory behind all resident tensors, each piece once: an account independent of any ledger."""
        storages = [tensor.untyped_storage() for held in self._held.copy().values() for tensor in held.tensors.values()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _views(piece: torch.Tensor, places: Mapping[str, TensorPlace]) -> Tensors:
    """The tensors in a piece. Made by as_strided, which takes 3 us where slicing and two views take 8: a blob may hold
    hundreds of tensors, and time spent here is time of the load."""
    dtypes = {place.dtype for place in places.values()}
    whole = {dtype: piece[: piece.numel() // dtype.itemsize * dtype.itemsize].view(dtype) for dtype in dtypes}
    return MappingProxyType(
        {
            name: whole[place.dtype].as_strided(place.shape, place.strides, place.start // place.dtype.itemsize)
            for name, place in places.items()
        }
    )

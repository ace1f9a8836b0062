"""Tensors to blob bytes and back, in safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from gemel_ray.spec.errors import CorruptBlobError, StoreError
from gemel_ray.spec.release import BlobInfo
from gemel_ray.weights.store import Store

Tensors = Mapping[str, torch.Tensor]


def encode(tensors: Tensors) -> bytes:
    """Tensors as safetensors bytes: equal tensors give equal bytes, whatever their order, device or layout.

    Tensors that share memory are written out each. Raises StoreError for what has no plain values, such as a tensor
    on the meta device.
    """
    held: set[int] = set()
    plain = {name: _plain(name, tensors[name], held) for name in sorted(tensors)}
    try:
        return safetensors_torch.save(plain)
    except (KeyError, RuntimeError, SafetensorError) as error:
        kinds = {name: str(tensor.dtype) for name, tensor in plain.items()}
        raise StoreError(f"safetensors cannot hold these tensors: {kinds} ({error}); convert them first") from error


def _plain(name: str, tensor: torch.Tensor, held: set[int]) -> torch.Tensor:
    """A contiguous tensor on the CPU that shares memory with none of those in `held`."""
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "on the meta device, without values" if tensor.is_meta else f"laid out as {tensor.layout}"
        raise StoreError(f"tensor {name!r} is {kind}; only plain tensors with values can be stored")
    found = tensor.detach().cpu().contiguous()
    storage = found.untyped_storage()
    # safetensors refuses tensors that share memory; tied weights and views of one buffer do.
    if storage.data_ptr() in held or storage.nbytes() != found.nbytes:
        found = found.clone()
    held.add(found.untyped_storage().data_ptr())
    return found


def decode(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors in safetensors bytes, on the CPU; CorruptBlobError where they are none."""
    try:
        return safetensors_torch.load(data)
    except SafetensorError as error:
        raise CorruptBlobError(
            f"{len(data)} bytes are not safetensors ({error}); `gemel verify` lists damaged files, "
            "restore them from a copy of the store"
        ) from error


def narrowed(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The first rows, columns ... of a tensor: a view of that shape, or the tensor itself where it has it already."""
    return tensor if tuple(tensor.shape) == tuple(shape) else tensor[tuple(slice(0, count) for count in shape)]


def tensor_bytes(tensors: Tensors) -> int:
    """Bytes the tensors take in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def put_tensors(store: Store, tensors: Tensors) -> tuple[str, BlobInfo]:
    """Store tensors as one blob: its name and what it weighs."""
    data = encode(tensors)
    return store.put_blob(data), BlobInfo(tensor_bytes=tensor_bytes(tensors), file_bytes=len(data))

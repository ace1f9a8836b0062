"""Finding and naming devices."""

from __future__ import annotations

import platform

import torch

from gemel_ray.spec.errors import InputError


def find_device(name: str) -> torch.device:
    """The device of that name; InputError when this machine has none."""
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{name!r} is no device; give 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if has_cuda else 0):
        raise InputError(f"device {name!r} is not on this machine; give 'auto' or 'cpu'")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; give 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return device


def device_name(device: torch.device, threads: int | None = None) -> str:
    """'NVIDIA H200', or the processor and the threads that torch computes with: those of the caller's thread unless
    told."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {threads or torch.get_num_threads()} threads"


def use_threads(count: int | None) -> None:
    """Compute with so many threads on a CPU, as long as it is the calling thread that computes; None changes nothing.

    OpenMP keeps this number for each thread of ours, so whoever measures and whoever serves set it where they compute.
    """
    if count is not None:
        torch.set_num_threads(count)

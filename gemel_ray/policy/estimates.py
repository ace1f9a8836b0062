"""Profiles without the device: what models cost on it, estimated from published rates. For planning only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemel_ray.spec.errors import InputError, nearest
from gemel_ray.spec.profile import DeviceProfile, QueryProfile

BATCH_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """A device's published peak rates, and the share of them that real work gets (`*_fraction`: our assumption).

    1e9 FLOP/s are 1e6 a ms, 1 GB/s is 1e6 bytes a ms.
    """

    name: str
    flops_per_ms: float
    memory_bytes_per_ms: float
    # From pinned host memory, one way.
    load_bytes_per_ms: float
    compute_fraction: float = 0.4
    memory_fraction: float = 0.7
    load_fraction: float = 0.75
    # Of each weight set loaded, and of each inference: calls, allocation, kernels launched.
    load_fixed_ms: float = 0.1
    run_fixed_ms: float = 1.0


# FP32 without tensor cores, from the vendor's data sheets; loads by the PCIe generation's rate for 16 lanes one way
# (3.0: 15.75 GB/s, 4.0: 31.5 GB/s, 5.0: 63 GB/s).
RATES: Mapping[str, DeviceRates] = {
    "p100": DeviceRates("NVIDIA P100 PCIe", 9.3e9, 732e6, 15.75e6),
    "t4": DeviceRates("NVIDIA T4", 8.1e9, 320e6, 15.75e6),
    "l4": DeviceRates("NVIDIA L4", 30.3e9, 300e6, 31.5e6),
    "h100": DeviceRates("NVIDIA H100 PCIe", 51e9, 2000e6, 63e6),
}


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one frame costs a model. One multiply-add is two FLOPs."""

    flops: float
    weight_bytes: int
    # Activations written and read again; and the most of them alive at once.
    activation_bytes: int
    workspace_bytes: int


def find_rates(name: str) -> DeviceRates:
    """The rates of a known device; InputError names the nearest one."""
    if name not in RATES:
        raise InputError(f"no rates of a device {name!r}; {nearest(name, RATES)}")
    return RATES[name]


def estimate_profile(
    rates: DeviceRates, costs: Mapping[str, ModelCost], batch_sizes: Sequence[int] = BATCH_SIZES
) -> DeviceProfile:
    """The profile of queries by name, marked as estimated."""
    return DeviceProfile(
        device=rates.name,
        estimated=True,
        load_fixed_ms=rates.load_fixed_ms,
        load_bytes_per_ms=rates.load_bytes_per_ms * rates.load_fraction,
        queries={
            name: QueryProfile(
                run_ms={size: estimate_run_ms(rates, cost, size) for size in batch_sizes},
                workspace_bytes={size: size * cost.workspace_bytes for size in batch_sizes},
            )
            for name, cost in costs.items()
        },
    )


def estimate_run_ms(rates: DeviceRates, cost: ModelCost, batch_size: int) -> float:
    """Roofline (Williams et al., CACM 2009): computing or moving bytes, whichever takes longer, plus a fixed part.

    Weights are read once a batch, activations once a frame.
    """
    compute_ms = batch_size * cost.flops / (rates.flops_per_ms * rates.compute_fraction)
    moved_bytes = cost.weight_bytes + batch_size * cost.activation_bytes
    return rates.run_fixed_ms + max(compute_ms, moved_bytes / (rates.memory_bytes_per_ms * rates.memory_fraction))

"""Ways to compute the same model. Which is fastest depends on the model and the device, so it is measured.

Plain is bit for bit what torch computes with the model as it was built. Channels-last only reorders activations:
answers differ by rounding. bfloat16 and float16 round activations and weights to 8 and 11 bits as they are used
(autocast), channels last; weights stay float32 in memory, since several queries may share them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gemel_ray.spec.profile import Way

# What another way must at least spare to be preferred to plain: less may be chance, and plain is exact.
_LEAST_SPARED_FRACTION = 0.1
_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def computing(way: Way, device: torch.device) -> AbstractContextManager[object]:
    """What surrounds a forward pass."""
    if way in _PRECISIONS:
        return torch.autocast(device.type, dtype=_PRECISIONS[way])
    return nullcontext()


def laid_out(inputs: Any, way: Way) -> Any:  # noqa: ANN401 - as Task.prepare gives it
    """A model's input, in the layout of the way. Detectors take lists and lay out batches by themselves."""
    if way == "plain" or not isinstance(inputs, torch.Tensor):
        return inputs
    return inputs.contiguous(memory_format=torch.channels_last)


def fastest(compute: Callable[[Way], object], ways: Sequence[Way], repeats: int) -> Way:
    """The way of least time, all tried in turn so that a busy moment hits each; plain unless a tenth is spared."""
    took_s: dict[Way, list[float]] = {way: [] for way in ("plain", *ways)}
    for _ in range(repeats + 1):
        for way, times in took_s.items():
            begun = time.perf_counter()
            compute(way)
            times.append(time.perf_counter() - begun)
    # The first of each warms up.
    relative = {
        way: statistics.median(own / plain for own, plain in zip(times[1:], took_s["plain"][1:], strict=True))
        for way, times in took_s.items()
    }
    best = min(relative, key=relative.__getitem__)
    return best if relative[best] <= 1 - _LEAST_SPARED_FRACTION else "plain"

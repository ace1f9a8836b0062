"""How many bytes a piece of work holds at its worst, beside what was there before."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def peak_bytes(work: Work, device: torch.device) -> int:
    """Do the work once and measure the most bytes that its tensors, temporaries of operators included, held at once.

    On CUDA by the allocator's own peak; on a CPU by adding up the allocator's events on this thread, as torch's
    profiler sees them. Memory that libraries take behind the allocator's back is not seen.
    """
    return _cuda_peak_bytes(work, device) if device.type == "cuda" else _cpu_peak_bytes(work)


def _cuda_peak_bytes(work: Work, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak_bytes(work: Work) -> int:
    # Some builds of torch log two lines to stderr for every profile; the level is read when the first one starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        work()
    events = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(changes), default=0)

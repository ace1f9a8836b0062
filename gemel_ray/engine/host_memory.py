"""The memory of this machine. Imports nothing that is slow or may be broken: `gemel doctor` asks here, too."""

from __future__ import annotations

import os
from pathlib import Path


def host_memory_bytes() -> tuple[int, int]:
    """Of this machine or, if that is less, of the container that this runs in: all of it, and what is free."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = free = page * os.sysconf("SC_PHYS_PAGES")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    limit, used = (_lines(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit and used and limit[0].isdigit() and int(limit[0]) < total:
        total = int(limit[0])
        free = min(free, total - int(used[0]))
    return total, free


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

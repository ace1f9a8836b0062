"""What every benchmark record states beside its numbers."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("gemel-ray", "torch", "torchvision", "numpy", "ray")


def heading(name: str) -> dict[str, Any]:
    """Benchmark, command, date, machine, versions."""
    return {
        "benchmark": name,
        "command": f"python jobs/{name}.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write(record: dict[str, Any], machine: str, out: Path | None = None, *, indent: int | None = 1) -> Path:
    """Write a record as results/NAME_MACHINE_DATE.json, or where it is wanted; large ones without `indent`."""
    path = path_of(record, machine) if out is None else out
    path.write_text(json.dumps(record, indent=indent) + "\n", encoding="utf-8")
    return path


def latest_path(record: dict[str, Any], machine: str) -> Path:
    """Where the newest record of that kind is, of whatever day; where this one goes if there is none."""
    name = f"{record['benchmark']}_{machine}_" + "[0-9]" * 4 + "-[0-9][0-9]" * 2 + ".json"
    return max(RESULTS.glob(name), default=path_of(record, machine))


def path_of(record: dict[str, Any], machine: str) -> Path:
    """Where a record goes; its folder is made."""
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"{record['benchmark']}_{machine}_{record['date'][:10]}.json"

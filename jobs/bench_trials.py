"""Benchmark: the search's driver over hundreds of trials, and what a second worker brings.

    python jobs/bench_trials.py --trials 300

Barely trained strangers come nowhere near a target of 100 %: the search divides as long as it is let, which makes
trials short and many. The process's resident memory is read after every trial; it must not grow with their number.
Then one search with longer trials, with one worker and with two: the release has to be the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import records
import yaml

from gemel_ray.merging.options import SearchOptions
from gemel_ray.merging.searching import search
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Workload, load_workload
from gemel_ray.training.fleet import train_fleet

ORIGINAL_STEPS = 40
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def workload_in(folder: Path, *, queries: int, target: float) -> Workload:
    """Barely trained SqueezeNets, each on a small street camera of its own."""
    names = [f"camera{number}" for number in range(queries)]
    document = {
        "name": "trials",
        "defaults": {"accuracy_target": target},
        "feeds": {name: {"kind": "streets", "seed": seed, "frames": 200} for seed, name in enumerate(names)},
        "queries": [
            {
                "name": name,
                "feed": name,
                "model": {
                    "architecture": "squeezenet1_1",
                    "classes": ["background", "vehicle"],
                    "input_size": 32,
                    "weights": f"originals/{name}.safetensors",
                },
            }
            for name in names
        ],
    }
    (folder / "workload.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    workload = load_workload(folder / "workload.yaml")
    train_fleet(workload, folder / "originals", steps=ORIGINAL_STEPS, seed=0, family=False)
    return workload


def resident_bytes() -> int:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def driver_memory(trials: int) -> dict[str, Any]:
    """Resident bytes of the driver after each trial of one long search."""
    seen: list[int] = []

    def report(line: str) -> None:
        if " steps, " in line:
            seen.append(resident_bytes())

    with tempfile.TemporaryDirectory() as folder:
        workload = workload_in(Path(folder), queries=4, target=1.0)
        settings = SearchSettings(max_trials=trials, max_steps=1, gate_margin=1.0, patience=1)
        search(workload, str(Path(folder) / "store"), SearchOptions(settings=settings), report)
    tenth = max(len(seen) // 10, 1)
    return {
        "trials": len(seen),
        "resident_bytes": seen,
        "growth_bytes_a_trial": (statistics.fmean(seen[-tenth:]) - statistics.fmean(seen[tenth : 2 * tenth]))
        / max(len(seen) - 2 * tenth, 1),
    }


def workers(steps: int, rounds: int) -> list[dict[str, Any]]:
    """The same search with one worker and with two, in turn."""
    found = []
    for turn in range(2 * rounds):
        parallel = 1 + turn % 2
        with tempfile.TemporaryDirectory() as folder:
            workload = workload_in(Path(folder), queries=4, target=0.97)
            settings = SearchSettings(max_trials=8, max_steps=steps, gate_margin=1.0, patience=1)
            options = SearchOptions(settings=settings, parallel=parallel)
            began_s = time.monotonic()
            manifest = search(workload, str(Path(folder) / "store"), options)
            found.append({"workers": parallel, "seconds": time.monotonic() - began_s, "release": weights_of(manifest)})
    return found


def weights_of(manifest: Manifest) -> dict[str, dict[str, str]]:
    """What a release consists of: equal for equal releases."""
    return {name: dict(query.weights) for name, query in manifest.queries.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--steps", type=int, default=60, help="of each trial where workers are compared")
    parser.add_argument("--rounds", type=int, default=3, help="of comparing workers")
    parser.add_argument("--machine", default="cpu")
    options = parser.parse_args()
    memory, compared = driver_memory(options.trials), workers(options.steps, options.rounds)
    seconds = {count: [row["seconds"] for row in compared if row["workers"] == count] for count in (1, 2)}
    summary = {
        "driver": memory,
        "same_release": all(row["release"] == compared[0]["release"] for row in compared),
        "seconds_by_workers": seconds,
        "ratio": statistics.median(two / one for one, two in zip(seconds[1], seconds[2], strict=True)),
    }
    path = records.write(records.heading("bench_trials") | summary, options.machine)
    print(f"{memory['trials']} trials, {memory['growth_bytes_a_trial']:.0f} bytes more after each")
    print(f"two workers take {summary['ratio']:.2f} x the time of one, same release: {summary['same_release']}; {path}")


if __name__ == "__main__":
    main()

"""Benchmark: the same frames through the real engine, originals and merged models, under every policy it can run.

    gemel demo && python jobs/bench_serving.py gemel-demo

Plays recorded frames at their cameras' speed inside one process (no Ray, no HTTP), several runs each, interleaved. The
first seconds are not counted: after them each engine takes another plan if that would have answered more of them.
Beside each measured goodput stands what the simulator predicts from a profile measured just before that run: a shared
machine is faster in one minute than in the next.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import records

from gemel_ray.demo.comparison import Recording, record, summarise
from gemel_ray.edge.simulation import cameras_of, measure, play
from gemel_ray.edge.traffic import periodic
from gemel_ray.engine.engine import Engine
from gemel_ray.engine.profiling import measure_profile
from gemel_ray.policy.sharing import models_of
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import format_bytes, parse_bytes
from gemel_ray.spec.workload import load_workload
from gemel_ray.training.data import read_workload_data
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.store import Store, open_store

# Enough for every model and its workspace.
_AMPLE_BYTES = 2 << 30
# Name, which release, policy, and whether memory is ample.
CASES = (
    ("model LRU, originals", "originals", "model_lru", False),
    ("time/space sharing, originals", "originals", "time_space", False),
    ("ours, originals", "originals", "ours_released", False),
    ("ours, merged", "merged", "ours_released", False),
    ("everything resident, originals", "originals", "ours_released", True),
)


def run_case(
    manifest: Manifest, cache: LocalCache, profile: DeviceProfile, recordings: Mapping[str, Recording],
    policy: str, budget_bytes: int, options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """One run, measured, the mean goodput that the simulator predicts for it, and what became of the plan."""
    engine = Engine(
        budget_bytes=budget_bytes, device=options.device, threads=options.threads, policy=policy, reload_from="disk"
    )
    engine.start(manifest, cache.fetch, profile)
    try:
        replay(engine, recordings, options.warm_up_seconds)
        reconsidered = engine.reconsider()
        plan, before = engine.plan, engine.status()
        found = replay(engine, recordings, options.seconds)
        played = summarise(found, recordings, engine.status())
        played = replace(played, loaded_bytes=played.loaded_bytes - before.loaded_bytes)
    finally:
        engine.stop()
    cameras = cameras_of(models_of(manifest))
    trace = play(plan, periodic(cameras, options.seconds * 1000))
    simulated = measure(policy, plan, trace).mean_goodput_fraction
    return asdict(played) | {"simulated_goodput": simulated, "reconsidered": str(reconsidered)}


def replay(engine: Engine, recordings: Mapping[str, Recording], seconds: float) -> list[FrameAnswer]:
    """So much of the recordings."""
    queries = {name: recording.query for name, recording in recordings.items()}
    return engine.replay(
        {name: recordings[name].frames[: round(seconds * query.fps)] for name, query in queries.items()},
        {name: query.fps for name, query in queries.items()},
        {name: query.slo_ms for name, query in queries.items()},
    )


def bench(
    store: Store, recordings: Mapping[str, Recording], options: argparse.Namespace, cache: LocalCache
) -> tuple[dict[str, DeviceProfile], list[dict[str, Any]]]:
    """Every case, every run, interleaved so that a noisy minute hits all of them."""
    merged = store.manifest(options.release)
    originals = merged
    while originals.parent is not None:
        originals = store.manifest(originals.parent)
    manifests = {"originals": cache.pull(originals.release), "merged": cache.pull(merged.release)}
    profiles: dict[str, DeviceProfile] = {}
    rows = []
    for run in range(options.runs):
        for name, which, policy, ample in CASES:
            budget_bytes, manifest = _AMPLE_BYTES if ample else options.memory, manifests[which]
            profile = measure_profile(manifest, cache.fetch, options.device, repeats=9, reload_from="disk")
            profiles[f"{name}, run {run}"] = profile
            found = run_case(manifest, cache, profile, recordings, policy, budget_bytes, options)
            rows.append({"case": name, "run": run, **found})
            print(line(name, [rows[-1]]), flush=True)
    return profiles, rows


def mean(values: Mapping[str, float]) -> float:
    return statistics.fmean(values.values())


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """Medians over runs."""
    goodput = statistics.median(mean(row["goodput"]) for row in rows)
    worst = statistics.median(min(row["goodput"].values()) for row in rows)
    simulated = statistics.median(row["simulated_goodput"] for row in rows)
    accuracy = statistics.median(mean(row["accuracy"]) for row in rows)
    loaded = format_bytes(round(statistics.median(row["loaded_bytes"] for row in rows)))
    return (
        f"{name:32} goodput {100 * goodput:5.1f} % (worst {100 * worst:5.1f}, simulated {100 * simulated:5.1f})  "
        f"end-to-end accuracy {100 * accuracy:5.1f} %  loaded {loaded}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `gemel demo` left: workload.yaml and store/")
    parser.add_argument("--release", type=int, default=None, help="the merged release; HEAD's without it")
    parser.add_argument("--memory", type=parse_bytes, default=None, help="the budget; the workload's node's without it")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--warm-up-seconds", type=float, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default="cpu", help="a short name for the record's file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    workload = load_workload(options.folder / "workload.yaml")
    options.memory = options.memory or workload.nodes[0].memory
    recordings = record(read_workload_data(workload), seconds=options.seconds)
    store = open_store(options.folder / "store")
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
        profiles, rows = bench(store, recordings, options, LocalCache(store, folder))
    print(f"\nmedians of {options.runs} runs in {format_bytes(options.memory)} on {device_name_of(profiles)}:")
    for name, *_ in CASES:
        print(line(name, [row for row in rows if row["case"] == name]))
    heading = records.heading("bench_serving") | {"options": {key: str(value) for key, value in vars(options).items()}}
    document = heading | {
        "workload": workload.name,
        "profiles": {which: profile.model_dump(mode="json") for which, profile in profiles.items()},
        "rows": rows,
    }
    print(f"raw numbers: {records.write(document, f'{options.machine}-{workload.name}')}")


def device_name_of(profiles: Mapping[str, DeviceProfile]) -> str:
    return next(iter(profiles.values())).device


if __name__ == "__main__":
    main()

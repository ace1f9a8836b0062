"""Benchmark: the same frames through the real engine, originals and merged models, under every policy it can run.

    gemel demo && python jobs/bench_serving.py gemel-demo

Plays recorded frames at their cameras' speed inside one process (no Ray, no HTTP), several runs each, interleaved. The
first seconds are not counted: after them each engine takes another plan if that would have answered more of them.
Beside each measured goodput stands what the simulator makes of the same plan and frames, with the costs of profiles
measured just before and just after that run, on average: a shared machine is faster in one minute than in the next.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import records
import torch

from gemel_ray.demo.comparison import Recording, record, summarise
from gemel_ray.edge.simulation import measure, play
from gemel_ray.edge.traffic import Camera, periodic, spread
from gemel_ray.engine.engine import Engine
from gemel_ray.engine.profiling import measure_profile
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.plan import Contention, EdgePlan
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import format_bytes, parse_bytes
from gemel_ray.spec.workload import load_workload
from gemel_ray.training.data import read_workload_data
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.maintenance import originals_of
from gemel_ray.weights.store import Store, open_store

# Enough for every model and its workspace.
_AMPLE_BYTES = 2 << 30


class Case(NamedTuple):
    """One way to serve the recordings."""

    name: str
    release: str
    policy: str
    has_all_memory: bool = False
    reconsiders: bool = True


CASES = (
    Case("model LRU, originals", "originals", "model_lru"),
    Case("time/space sharing, originals", "originals", "time_space"),
    Case("ours, originals", "originals", "ours_released"),
    Case("ours, originals, first plan", "originals", "ours_released", reconsiders=False),
    Case("ours, merged", "merged", "ours_released"),
    Case("everything resident, originals", "originals", "ours_released", has_all_memory=True),
)


def run_case(
    case: Case, manifest: Manifest, cache: LocalCache, recordings: Mapping[str, Recording], cameras: Sequence[Camera],
    options: argparse.Namespace,
) -> tuple[dict[str, Any], list[DeviceProfile]]:  # fmt: skip
    """One run, measured, the mean goodput that the simulator makes of it, and what became of the plan; profiles."""

    def profiled() -> DeviceProfile:
        return measure_profile(manifest, cache.fetch, options.device, repeats=9, reload_from="disk")

    profiles = [profiled()]
    budget_bytes = _AMPLE_BYTES if case.has_all_memory else options.memory
    engine = Engine(
        budget_bytes=budget_bytes, device=options.device, threads=options.threads, policy=case.policy,
        reload_from="disk",
    )  # fmt: skip
    engine.start(manifest, cache.fetch, profiles[0])
    try:
        replay(engine, recordings, cameras, options.warm_up_seconds)
        reconsidered = engine.reconsider() if case.reconsiders else None
        plan, before = engine.plan, engine.status()
        found = replay(engine, recordings, cameras, options.seconds)
        played = summarise(found, recordings, engine.status())
        played = replace(played, loaded_bytes=played.loaded_bytes - before.loaded_bytes)
    finally:
        engine.stop()
    profiles.append(profiled())
    frames = periodic(cameras, options.seconds * 1000)
    costed = [at_cost(plan, profile) for profile in profiles]
    simulated = [measure(case.policy, each, play(each, frames)).mean_goodput_fraction for each in costed]
    row = {"simulated_goodput": statistics.fmean(simulated), "simulated_goodputs": simulated}
    return asdict(played) | row | {"reconsidered": str(reconsidered)}, profiles


def at_cost(plan: EdgePlan, profile: DeviceProfile) -> EdgePlan:
    """The same plan, what it takes as that profile has it."""
    return replace(
        plan,
        queries=tuple(
            replace(query, run_ms={size: profile.run_ms(query.name, size) for size in query.run_ms})
            for query in plan.queries
        ),
        load_ms={weight: profile.load_ms(count_bytes) for weight, count_bytes in plan.weight_bytes.items()},
        contention=Contention(profile.run_slowdown, profile.load_slowdown),
    )


def replay(
    engine: Engine, recordings: Mapping[str, Recording], cameras: Sequence[Camera], seconds: float
) -> list[FrameAnswer]:
    """So much of the recordings."""
    frames = {each.query: recordings[each.query].frames[: round(seconds * each.fps)] for each in cameras}
    return engine.replay(frames, cameras)


def cameras_for(recordings: Mapping[str, Recording], run: int, options: argparse.Namespace) -> list[Camera]:
    """Each query's, at phases spread evenly over the frame period, or drawn anew for every run."""
    even = spread([Camera(name, each.query.fps, each.query.slo_ms) for name, each in recordings.items()])
    if options.phases == "even":
        return list(even)
    draw = random.Random(options.seed + run)
    return [replace(camera, phase_ms=draw.uniform(0, 1000 / camera.fps)) for camera in even]


def bench(
    store: Store, recordings: Mapping[str, Recording], options: argparse.Namespace, cache: LocalCache
) -> tuple[dict[str, list[DeviceProfile]], list[dict[str, Any]]]:
    """Every case, every run, interleaved so that a noisy minute hits all of them."""
    merged = store.manifest(options.release)
    originals = originals_of(store, merged)
    manifests = {"originals": cache.pull(originals.release), "merged": cache.pull(merged.release)}
    profiles: dict[str, list[DeviceProfile]] = {}
    rows = []
    for run in range(options.runs):
        cameras = cameras_for(recordings, run, options)
        for case in CASES:
            manifest = manifests[case.release]
            found, measured = run_case(case, manifest, cache, recordings, cameras, options)
            profiles[f"{case.name}, run {run}"] = measured
            rows.append({"case": case.name, "run": run, **found})
            print(line(case.name, [rows[-1]]), flush=True)
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
    parser.add_argument("--phases", choices=("even", "random"), default="even", help="when each camera's frames come")
    parser.add_argument("--seed", type=int, default=0, help="of random phases")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default="cpu", help="a short name for the record's file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    # Profiles, too, on so many threads as the engine computes with.
    torch.set_num_threads(options.threads)
    workload = load_workload(options.folder / "workload.yaml")
    options.memory = options.memory or workload.nodes[0].memory
    recordings = record(read_workload_data(workload), seconds=options.seconds)
    store = open_store(options.folder / "store")
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
        profiles, rows = bench(store, recordings, options, LocalCache(store, folder))
    print(f"\nmedians of {options.runs} runs in {format_bytes(options.memory)} on {device_name_of(profiles)}:")
    for case in CASES:
        print(line(case.name, [row for row in rows if row["case"] == case.name]))
    heading = records.heading("bench_serving") | {"options": {key: str(value) for key, value in vars(options).items()}}
    document = heading | {
        "workload": workload.name,
        "profiles": {which: [each.model_dump(mode="json") for each in found] for which, found in profiles.items()},
        "rows": rows,
    }
    print(f"raw numbers: {records.write(document, f'{options.machine}-{workload.name}')}")


def device_name_of(profiles: Mapping[str, Sequence[DeviceProfile]]) -> str:
    return next(iter(profiles.values()))[0].device


if __name__ == "__main__":
    main()

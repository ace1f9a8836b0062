"""Benchmark: the engine at overload for minutes on end: is the budget ever exceeded, does the process grow?

    python jobs/bench_soak.py --minutes 10
    python jobs/bench_soak.py --minutes 30 --over 2.0     # through HTTP, at twice what can be sustained

Cameras send more frames than the device can answer, to models that do not fit the budget together. A watcher that
knows nothing of the engine's ledger adds up the memory behind all tensors every so often, and reads the process's size.
With `--over`, the same models are served by `gemel edge` in a process of its own: see soak_http.py.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import records
import soak_http
import torch
from untrained import publish, release

from gemel_ray.engine.blobs import Fetch
from gemel_ray.engine.devices import device_name
from gemel_ray.engine.engine import Engine
from gemel_ray.engine.profiling import measure_profile, profile_store
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import format_bytes

ARCHITECTURES = ("resnet18", "resnet18", "resnet34", "mobilenet_v3_large", "mobilenet_v3_large", "squeezenet1_1")
INPUT_SIZE = 64
SLO_MS = 200.0
STATM = Path("/proc/self/statm")
Sample = dict[str, float]


class Watcher:
    """Samples of what is held, taken on a thread of its own."""

    def __init__(self, engine: Engine, every_s: float) -> None:
        self.samples: list[Sample] = []
        self._engine = engine
        self._every_s = every_s
        self._ended = threading.Event()
        self._begun = time.perf_counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        status, residence = self._engine.status(), self._engine.residence
        return {
            "at_s": time.perf_counter() - self._begun,
            # Pages behind all weights, those at hand for the next included; then what running inferences were granted.
            "arena_bytes": residence.arena.held_bytes,
            "weights_bytes": residence.allocated_bytes(),
            "workspace_bytes": status.workspace_bytes,
            "process_bytes": process_bytes(),
            "loaded_bytes": status.loaded_bytes,
        }


def process_bytes() -> int:
    """Of this process in memory; 0 where the system does not say."""
    return int(STATM.read_text().split()[1]) * mmap.PAGESIZE if STATM.exists() else 0


def overload(engine: Engine, manifest: Manifest, fps: float, seconds: float) -> int:
    """Send every query a frame at that rate; gives how many were answered in time."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8) for _ in range(8)]
    fresh = [0]

    def count(future: Future[FrameAnswer]) -> None:
        fresh[0] += future.result().fresh

    begun, sent = time.perf_counter(), 0
    while (at := sent / fps) < seconds:
        time.sleep(max(0.0, begun + at - time.perf_counter()))
        for name in manifest.queries:
            engine.submit(name, images[sent % len(images)]).add_done_callback(count)
        sent += 1
    return fresh[0]


def soak(
    manifest: Manifest, fetch: Fetch, profile: DeviceProfile, budget_bytes: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One engine at overload, and what the watcher saw."""
    engine = Engine(budget_bytes=budget_bytes, device=options.device, threads=options.threads)
    engine.start(manifest, fetch, profile)
    watcher = Watcher(engine, options.every)
    try:
        fresh = overload(engine, manifest, options.fps, 60 * options.minutes)
        watcher.end()
        status = engine.status()
    finally:
        engine.stop()
    arrived = sum(query.arrived for query in status.queries.values())
    return summarise(watcher.samples, budget_bytes) | {
        "budget_bytes": budget_bytes,
        "peak_bytes": status.peak_bytes,
        "arrived": arrived,
        "answered_fraction": fresh / arrived,
        "loaded_bytes": status.loaded_bytes,
        "process_bytes_stopped": process_bytes(),
        # Enough of them to see a trend; the worst is taken of all.
        "samples": watcher.samples[:: max(len(watcher.samples) // 200, 1)],
    }


def summarise(samples: list[Sample], budget_bytes: int) -> dict[str, float]:
    """The worst of all samples, and the drift of the process's size after the first fifth, in which it warms up."""
    settled = samples[len(samples) // 5 :]
    thirds = [settled[: len(settled) // 3], settled[-(len(settled) // 3) :]]
    early, late = (statistics.median(sample["process_bytes"] for sample in third) for third in thirds)
    return {
        "most_weights_bytes": max(sample["weights_bytes"] for sample in samples),
        "most_arena_bytes": max(sample["arena_bytes"] for sample in samples),
        "samples_above_budget": sum(s["weights_bytes"] + s["workspace_bytes"] > budget_bytes for s in samples),
        "process_bytes_first_third": early,
        "process_bytes_last_third": late,
        "process_growth_fraction": late / early - 1 if early else 0.0,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--fps", type=float, default=30, help="of every query; far more than can be answered")
    parser.add_argument("--over", type=float, help="through HTTP, at so many times the sustainable rate; not --fps")
    parser.add_argument("--every", type=float, default=0.25, help="seconds between two samples")
    parser.add_argument("--share-held", type=float, default=0.3, help="of the way from the largest model alone to all")
    parser.add_argument("--merged", action="store_true", help="share all that can be shared")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default="cpu", help="a short name for the record's file")
    return parser.parse_args()


def budget_of(manifest: Manifest, profile: DeviceProfile, share_held: float) -> int:
    """A part of the way from the largest model alone to all of them, beside the workspace of one frame."""
    alone = [sum(manifest.blobs[sha].tensor_bytes for sha in manifest.blobs_of(name)) for name in manifest.queries]
    workspace = max(min(query.workspace_bytes.values()) for query in profile.queries.values())
    return round(max(alone) + workspace + share_held * (manifest.bytes_after - max(alone)))


def over_http(options: argparse.Namespace) -> None:
    """The soak through the real endpoint, and its record."""
    with tempfile.TemporaryDirectory(prefix="gemel-soak-") as name:
        folder = Path(name)
        manifest = publish(
            folder / "store", ARCHITECTURES, input_size=INPUT_SIZE, fps=30, slo_ms=SLO_MS, merged=options.merged
        )
        profile = profile_store(str(folder / "store"), None, device=options.device)
        found = soak_http.soak(
            folder, list(manifest.queries), budget_bytes=budget_of(manifest, profile, options.share_held),
            size=INPUT_SIZE, slo_ms=SLO_MS, over=options.over, minutes=options.minutes, device=options.device,
            threads=options.threads,
        )  # fmt: skip
    print(
        f"{found['came_of_them']}\nlatency of fresh answers: {found['latency_ms']}, "
        f"{100 * found['within_slo_fraction']:.2f} % within {SLO_MS:g} ms\n"
        f"process: {found['process_bytes_most'] / 1e6:.0f} MB at most, {100 * found['process_growth_fraction']:+.2f} %"
    )
    print(f"raw numbers: {records.write(records.heading('bench_soak') | found, f'{options.machine}-http')}")


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.over is not None:
        return over_http(options)
    with release(ARCHITECTURES, input_size=INPUT_SIZE, fps=options.fps, slo_ms=SLO_MS, merged=options.merged) as held:
        manifest, cache = held
        profile = measure_profile(manifest, cache.fetch, options.device)
        budget_bytes = budget_of(manifest, profile, options.share_held)
        found = soak(manifest, cache.fetch, profile, budget_bytes, options)
    print(
        f"{options.minutes:g} minutes on {device_name(torch.device(options.device))} in {format_bytes(budget_bytes)}: "
        f"{found['arrived']} frames, {100 * found['answered_fraction']:.1f} % answered in time, "
        f"{format_bytes(found['loaded_bytes'])} loaded\n"
        f"peak {100 * found['peak_bytes'] / budget_bytes:.2f} % of the budget, samples above it: "
        f"{found['samples_above_budget']}\n"
        f"process: {found['process_bytes_first_third'] / 1e6:.0f} MB early, "
        f"{found['process_bytes_last_third'] / 1e6:.0f} MB late ({100 * found['process_growth_fraction']:+.2f} %), "
        f"{found['process_bytes_stopped'] / 1e6:.0f} MB once stopped"
    )
    print(f"raw numbers: {records.write(records.heading('bench_soak') | found, options.machine)}")


if __name__ == "__main__":
    main()

"""Benchmark: swapping on the real device, without Ray: how fast weights arrive, and whether just the missing ones do.

    python jobs/bench_swap.py                              # on this machine's processor
    python jobs/bench_swap.py --device cuda --machine NAME

Copy rate: queries' weight sets are evicted and loaded again, and the same bytes are copied plainly, piece by piece,
in turn: on a CPU from memory to memory, on CUDA from pinned memory. So many models of a kind that they do not stay in
the processor's caches, as while serving: copied again and again, 3 MB take a third of the time.

Exactness: queries take turns in a budget that does not hold them all, and the bytes that were loaded are compared with
those that were missing. Layer by layer: the time from nothing resident to an answer, against the same with all weights
awaited first.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import records
import torch
from untrained import CLASSES, release

from gemel_ray.edge.ledger import Ledger
from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.trace import Trace
from gemel_ray.engine.blobs import BlobFile, open_blobs
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.devices import device_name, find_device
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.policy.duty_cycle import MEASURED_ROUNDS
from gemel_ray.policy.order import cycle_bytes
from gemel_ray.spec.actions import Evict, Frame, Infer, Load, Verdict
from gemel_ray.spec.plan import EdgePlan, PlannedQuery
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.binding import distinct_bytes
from gemel_ray.vision.models import build_model
from gemel_ray.weights.cache import LocalCache

# From 3 to 98 MB, as many of each as have so many bytes together.
COPIED_BYTES = 192 << 20
COPIED = ("squeezenet1_1", "mobilenet_v3_large", "resnet18", "resnet50")
# In turns; of the first three pairs all that is alike is shared in the merged case.
CYCLED = ("resnet18", "resnet18", "resnet34", "mobilenet_v3_large", "mobilenet_v3_large", "squeezenet1_1")
# Heavy enough to be several weight sets each.
ANSWERED = ("resnet18", "resnet34", "resnet50", "vgg11")
INPUT_SIZE = 64
ANSWERED_SIZE = 112
_AMPLE_BYTES = 2 << 30
WORKSPACE_BYTES = 32 << 20


def copy_rates(device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """For each model: times of loading it and of plain copies, in turn."""
    rows = []
    for architecture in COPIED:
        own_bytes = distinct_bytes([build_model(ModelSpec(architecture=architecture, classes=CLASSES))])
        copies = math.ceil(COPIED_BYTES / own_bytes)
        with release([architecture] * copies, input_size=INPUT_SIZE, fps=1, slo_ms=1, merged=False) as found:
            blobs = open_blobs(found[0], found[1].fetch)
            load_ms, plain_ms = _timed_in_turn(_loading(blobs, device), _copying(blobs, device), repeats)
        count_bytes = sum(blob.data_bytes for blob in blobs.values())
        row = {"model": architecture, "copies": copies, "bytes": count_bytes}
        rows.append(row | {"load_ms": load_ms, "plain_copy_ms": plain_ms})
        print(rate_line(rows[-1]), flush=True)
    return rows


def rate_line(row: dict[str, Any]) -> str:
    """Medians, and the median of the ratios of neighbours."""
    rate = row["bytes"] / statistics.median(row["load_ms"]) / 1e6
    return (
        f"{row['model']:20} {row['bytes'] / row['copies'] / 1e6:6.1f} MB at {rate:5.2f} GB/s, "
        f"{100 * share(row):5.1f} % of a plain copy"
    )


def share(row: dict[str, Any]) -> float:
    """Of the plain copy's rate."""
    return statistics.median(p / m for p, m in zip(row["plain_copy_ms"], row["load_ms"], strict=True))


def _loading(blobs: dict[str, BlobFile], device: torch.device) -> Callable[[], None]:
    """Evict everything and load it again."""
    residence = Residence(device, budget_bytes=2 * sum(blob.data_bytes for blob in blobs.values()))

    def load() -> None:
        for weight in residence.weights:
            residence.evict(weight)
        for weight, blob in blobs.items():
            residence.load(weight, blob, blob.data_bytes)

    return load


def _copying(blobs: dict[str, BlobFile], device: torch.device) -> Callable[[], None]:
    """Copy as many bytes in as many pieces."""
    is_cuda = device.type == "cuda"
    sources = [torch.ones(blob.data_bytes, dtype=torch.uint8, pin_memory=is_cuda) for blob in blobs.values()]
    targets = [torch.ones(blob.data_bytes, dtype=torch.uint8, device=device) for blob in blobs.values()]

    def copy() -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source, non_blocking=True)
        if is_cuda:
            torch.cuda.synchronize(device)

    return copy


def _timed_in_turn(one: Callable[[], None], other: Callable[[], None], repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each; the first time of both is not counted."""
    took_ms: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for work, times in zip((one, other), took_ms, strict=True):
            begun = time.perf_counter()
            work()
            times.append((time.perf_counter() - begun) * 1e3)
    return took_ms[0][1:], took_ms[1][1:]


def answer_times(device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """For each model, nothing of it resident: times until a frame is answered, computing layer by layer as weights
    arrive, and only once all are there, in turn."""
    rows = []
    for architecture in ANSWERED:
        with release([architecture], input_size=ANSWERED_SIZE, fps=1, slo_ms=1, merged=False) as (manifest, cache):
            layered_ms, whole_ms = _answered_in_turn(manifest, cache, device, repeats)
        rows.append({"model": architecture, "layered_ms": layered_ms, "whole_ms": whole_ms})
        print(answer_line(rows[-1]), flush=True)
    return rows


def answer_line(row: dict[str, Any]) -> str:
    ratio = statistics.median(one / other for one, other in zip(row["layered_ms"], row["whole_ms"], strict=True))
    return (
        f"{row['model']:20} answers after {statistics.median(row['layered_ms']):6.1f} ms layer by layer, "
        f"{statistics.median(row['whole_ms']):6.1f} ms whole: {ratio:.2f} of the time"
    )


def _answered_in_turn(
    manifest: Manifest, cache: LocalCache, device: torch.device, repeats: int
) -> tuple[list[float], list[float]]:
    blobs = open_blobs(manifest, cache.fetch)
    skeletons = build_skeletons(manifest, blobs, device)
    torch_device = TorchDevice(skeletons, blobs, Residence(device), Ledger(_AMPLE_BYTES), threads=1)
    ((name, skeleton),) = skeletons.items()
    torch_device.frames[0] = np.zeros((ANSWERED_SIZE, ANSWERED_SIZE, 3), dtype=np.uint8)
    loads = [Load(weight, blobs[weight].data_bytes, 1.0) for weight in skeleton.weights]
    infer = Infer(name, (0,), WORKSPACE_BYTES, 1.0)

    def answer(awaited: int) -> None:
        """Start the inference once so many loads have ended."""
        for weight in torch_device.residence.weights:
            torch_device.start(Evict(weight))
        for load in loads:
            torch_device.start(load)
        for _ in range(awaited):
            torch_device.next_event()
        torch_device.start(infer)
        for _ in range(len(loads) + 1 - awaited):
            torch_device.next_event()

    answer(0)
    try:
        return _timed_in_turn(lambda: answer(0), lambda: answer(len(loads)), repeats)
    finally:
        torch_device.close()


def cycles(device: torch.device) -> list[dict[str, Any]]:
    """Merged and not, in budgets of several sizes: bytes loaded against bytes missing."""
    rows = []
    for merged in (False, True):
        with release(CYCLED, input_size=INPUT_SIZE, fps=1, slo_ms=1, merged=merged) as (manifest, cache):
            for share_held in (0.0, 0.3, 0.6, 0.9):
                rows.append({"merged": merged, "share_held": share_held} | _cycled(manifest, cache, device, share_held))
                print(cycle_line(rows[-1]), flush=True)
    return rows


def cycle_line(row: dict[str, Any]) -> str:
    exact = "exactly" if row["loaded_bytes"] == row["missing_bytes"] else f"NOT {row['missing_bytes']}"
    return (
        f"{'merged' if row['merged'] else 'unmerged':9} budget {row['budget_bytes'] / 1e6:6.1f} MB: "
        f"{row['loaded_bytes_a_cycle'] / 1e6:6.1f} MB a cycle (foreseen {row['foreseen_bytes_a_cycle'] / 1e6:6.1f}); "
        f"loaded {row['loaded_bytes']}, missing {exact}; peak {100 * row['peak_bytes'] / row['budget_bytes']:.1f} %"
    )


def _cycled(manifest: Manifest, cache: LocalCache, device: torch.device, share_held: float) -> dict[str, Any]:
    """Strict round robin without overlap, so that the foreseen bytes of a round are those of policy.order."""
    plan = _plan(manifest, share_held)
    rounds = 1 + MEASURED_ROUNDS
    blobs = open_blobs(manifest, cache.fetch)
    torch_device = TorchDevice(
        build_skeletons(manifest, blobs, device),
        blobs,
        Residence(device, budget_bytes=plan.budget_bytes),
        Ledger(plan.budget_bytes),
    )
    trace = Trace(torch_device)
    _bring(torch_device, plan, rounds)
    verdicts: list[Verdict] = []
    run(Scheduler(replace(plan, work_conserving=False)), trace, verdicts.append)
    usage = torch_device.usage()
    torch_device.close()
    turns = _missing_by_turn(trace, plan)
    measured = turns[len(plan.queries) :]
    return {
        "budget_bytes": plan.budget_bytes,
        "peak_bytes": usage.peak_bytes,
        "loaded_bytes": usage.loaded_bytes,
        "missing_bytes": sum(turns),
        "loaded_bytes_a_cycle": sum(measured) / MEASURED_ROUNDS,
        "foreseen_bytes_a_cycle": cycle_bytes(
            [query.name for query in plan.queries],
            {query.name: query.weights for query in plan.queries},
            plan.weight_bytes,
            budget_bytes=plan.budget_bytes,
            workspace_bytes={query.name: WORKSPACE_BYTES for query in plan.queries},
        ),
    }


def _plan(manifest: Manifest, share_held: float) -> EdgePlan:
    """A budget between the largest query alone and all of them."""
    weight_bytes = {sha: info.tensor_bytes for sha, info in manifest.blobs.items()}
    alone = [sum(weight_bytes[sha] for sha in manifest.blobs_of(name)) for name in manifest.queries]
    queries = tuple(
        PlannedQuery(name, manifest.blobs_of(name), 1, {1: 1.0}, {1: WORKSPACE_BYTES}) for name in manifest.queries
    )
    held_bytes = max(alone) + share_held * (sum(weight_bytes.values()) - max(alone))
    load_ms = dict.fromkeys(weight_bytes, 1.0)
    return EdgePlan(queries, weight_bytes, load_ms, WORKSPACE_BYTES + round(held_bytes), overlap=False)


def _bring(device: TorchDevice, plan: EdgePlan, rounds: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
    for number, query in enumerate(query for _ in range(rounds) for query in plan.queries):
        device.frames[number] = image
        device.arrive(Frame(query.name, number, 0.0, 1e12, droppable=False))
    device.stop()


def _missing_by_turn(trace: Trace, plan: EdgePlan) -> list[int]:
    """What each inference needed and did not find, told from the actions alone: an account of its own."""
    weights = {query.name: set(query.weights) for query in plan.queries}
    resident: set[str] = set()
    fresh: set[str] = set()
    missing = []
    for _, action in trace.started:
        if isinstance(action, Load):
            if action.weight in resident:
                raise AssertionError(f"{action.weight} was loaded though it was resident")
            resident.add(action.weight)
            fresh.add(action.weight)
        elif isinstance(action, Infer):
            missing.append(sum(plan.weight_bytes[weight] for weight in fresh & weights[action.query]))
            fresh -= weights[action.query]
        else:
            resident.remove(action.weight)
            fresh.discard(action.weight)
    return missing


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--machine", default="cpu", help="a short name for the record's file")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    document = records.heading("bench_swap") | {
        "device": device_name(device),
        "copies": copy_rates(device, options.repeats),
        "answers": answer_times(device, options.repeats),
        "cycles": cycles(device),
    }
    print(f"raw numbers: {records.write(document, options.machine)}")


if __name__ == "__main__":
    main()

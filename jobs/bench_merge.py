"""Benchmark: our merge search against GEMEL's own and everything simpler, on the same originals, frames and gate.

    python jobs/bench_merge.py ../shared/video --workloads family strangers --targets 0.95 0.98 --minutes 6

Each cell (workload, target, method) runs here on one thread, one trial after the other, without Ray: what counts is
what is saved after so much work. Cells that the newest record holds already are kept, so that a benchmark can be taken
up, unless `--again` says to measure them anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import merge_workloads
import records
import torch
from merge_methods import BY_LABELS, METHODS, Setting
from torch import nn

from gemel_ray.merging.starting import originals_of_workload
from gemel_ray.policy.grouping import group_repeats, group_slices_in_sets
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.layers import LayerGroup
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.workload import Judge, Workload, load_workload
from gemel_ray.training.data import QueryData, read_workload_data, with_teacher
from gemel_ray.training.fleet import train_fleet
from gemel_ray.training.releases import publish_originals
from gemel_ray.vision.inspection import analyze
from gemel_ray.weights.store import open_store

Cell = dict[str, Any]


def prepared(name: str, options: argparse.Namespace) -> Workload:
    """The workload with its originals in place; those of an earlier run are used again."""
    folder = options.folder / name
    bench = merge_workloads.write(name, options.video, folder)
    workload = load_workload(folder / "workload.yaml")
    if not bench.trained_elsewhere:
        train_fleet(
            workload,
            folder / "originals",
            steps=bench.steps,
            seed=options.seed,
            family=bench.family,
            parallel=options.parallel,
            report=lambda line: print(line, flush=True),
        )
    return workload


def bounds(workload: Workload) -> dict[str, float]:
    """What sharing could save at most, as fractions of all bytes: across models, across and within, and in slices."""
    found = analyze(workload, allow_factories=True)
    return {
        "cross_model_bound_fraction": found.shareable_bytes / found.total_bytes,
        "repeats_bound_fraction": _saved(group_repeats(found.inventories)) / found.total_bytes,
        "slices_bound_fraction": _saved(group_slices_in_sets(found.inventories)) / found.total_bytes,
    }


def _saved(groups: Sequence[LayerGroup]) -> int:
    return MergeConfiguration.of(groups).saved_bytes


def cells_of(workload: Workload, record: dict[str, Any], options: argparse.Namespace, path: Path) -> None:
    """Run every cell that the record lacks, or that is to be run again, and write the record after each."""
    models = originals_of_workload(workload, allow_factories=True)
    frames = {name: with_teacher(part, models[name]) for name, part in read_workload_data(workload).items()}
    for target in options.targets:
        aimed = judged(workload.aimed_at(target), options.judged_by)
        data = {q.name: QueryData(q, frames[q.name].splits) for q in aimed.queries}
        for method in options.methods:
            key = (target, method)
            others = [cell for cell in record["cells"] if (cell["target"], cell["method"]) != key]
            if len(others) < len(record["cells"]) and not options.again:
                continue
            made = records.heading("bench_merge")
            how = {name: made[name] for name in ("command", "date", "versions")} | {"minutes": options.minutes}
            record["cells"] = [*others, how | run_cell(aimed, models, data, target, method, options)]
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def judged(workload: Workload, judge: Judge) -> Workload:
    """The same workload with every target held against one thing."""
    queries = tuple(query.model_copy(update={"judged_by": judge}) for query in workload.queries)
    return workload.model_copy(update={"queries": queries})


def run_cell(
    workload: Workload,
    models: Mapping[str, nn.Module],
    data: Mapping[str, QueryData],
    target: float,
    method: str,
    options: argparse.Namespace,
) -> Cell:
    fresh = {name: deepcopy(model) for name, model in models.items()}
    settings = SearchSettings(
        max_trials=1000,
        max_steps=options.steps,
        gate_margin=options.gate_margin,
        objective="labels" if method in BY_LABELS else "distillation",
    )
    began_cpu_s = time.process_time()
    with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
        store = open_store(folder, create=True)
        root = publish_originals(store, workload, fresh, seed=options.seed)
        over = [False]

        def is_over() -> bool:
            over[0] = time.process_time() - began_cpu_s > 60 * options.minutes
            return over[0]

        rows = []
        for found in METHODS[method](Setting(workload, fresh, dict(data), store, root, settings, is_over)):
            rows.append(found | {"cpu_seconds": time.process_time() - began_cpu_s})
            print(line(workload.name, target, method, rows[-1]), flush=True)
    return {"target": target, "method": method, "finished": not over[0], "rows": rows}


def line(workload: str, target: float, method: str, found: dict[str, Any]) -> str:
    worst = min((estimate for estimate, _ in found["gates"].values()), default=1.0)
    return (
        f"{workload:10} {target:.2f} {method:16} {found['cpu_seconds']:5.0f} CPU s  saved "
        f"{100 * found['saved_fraction']:5.1f} %, worst gate {worst:.3f}  {found['label']}: {found['reason']} "
        f"({found['steps']} steps)"
    )


def refuse_others(held: Mapping[str, str], given: Mapping[str, str], path: Path) -> None:
    """One record holds cells that can be compared: the same gate, steps and seed."""
    for name in ("gate_margin", "steps", "seed"):
        if held[name] != given[name]:
            raise SystemExit(
                f"{path}: its cells were measured with --{name.replace('_', '-')} {held[name]}, not {given[name]}; "
                "give the same, or --machine with another name for a record of its own"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, help="the folder with cameras/, cifar10/ and weights/")
    parser.add_argument("--folder", type=Path, default=Path("bench-merge"), help="for workloads and their originals")
    parser.add_argument("--workloads", nargs="+", default=list(merge_workloads.MAKERS), choices=merge_workloads.MAKERS)
    parser.add_argument("--targets", nargs="+", type=float, default=[0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--minutes", type=float, default=10, help="of processor time for each cell")
    parser.add_argument("--steps", type=int, default=150, help="of each trial at most")
    parser.add_argument("--gate-margin", type=float, default=0.03)
    parser.add_argument(
        "--judged-by", choices=get_args(Judge), default="agreement", help="what targets are held against"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1, help="originals trained at once")
    parser.add_argument("--again", action="store_true", help="also the cells that the newest record holds")
    parser.add_argument("--machine", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.workloads:
        workload = prepared(name, options)
        heading = records.heading("bench_merge")
        judge = "-by-labels" if options.judged_by == "labels" else ""
        path = records.latest_path(heading, f"{options.machine}-{name}{judge}")
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else heading | {"cells": []}
        record |= {"workload": name} | bounds(workload)
        given = {k: str(v) for k, v in vars(options).items()}
        refuse_others(record.setdefault("options", given), given, path)
        cells_of(workload, record, options, path)
        print(f"raw numbers: {path}")


if __name__ == "__main__":
    main()

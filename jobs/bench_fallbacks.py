"""Benchmark: what each way of sharing a layer that resists is worth, on the workloads of bench_merge.

    python jobs/bench_fallbacks.py ../shared/video --workloads strangers cifar --steps 90

The first layers of all models, one by one and all at once, and everything that models share: each retrained for so
many steps, by itself, from the originals, in every way. Nothing is stopped early, so that rows can be compared. What is
told is the worst query's agreement with its original, best validation and the gate after it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_merge
import records
import torch
from torch import nn

from gemel_ray.merging.starting import originals_of_workload
from gemel_ray.spec.layers import LayerGroup
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.trials import Objective, Start
from gemel_ray.spec.workload import Workload
from gemel_ray.training.data import QueryData, read_workload_data, with_teacher
from gemel_ray.training.joint import JointRetraining, RetrainOptions
from gemel_ray.vision.inspection import analyze

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
# Nothing gets there before its steps are over.
_OUT_OF_REACH = 0.9999
COLUMNS = ("layers", "way", "saved_bytes", "validation", "gate", "cpu_seconds")


@dataclass(frozen=True)
class Way:
    """How to share: what is trained, from where, following what; with corrections, or by half of the models."""

    trains: str = "everything"
    start: Start = "aligned"
    objective: Objective = "distillation"
    rank: int = 0
    is_halved: bool = False


WAYS = {
    "everything trained, distillation, aligned": Way(),
    "from the mean": Way(start="mean"),
    "from a member": Way(start="member"),
    "labels": Way(objective="labels"),
    "both": Way(objective="both"),
    "shared weights and normalisation trained": Way(trains="shared"),
    "normalisation trained alone": Way(trains="norms"),
    "corrections of rank 2": Way(rank=2),
    "corrections of rank 8": Way(rank=8),
    "half of the members": Way(is_halved=True),
}


def additions_of(
    groups: tuple[LayerGroup, ...], workload: Workload, first: int
) -> Iterator[tuple[str, list[SharedLayer]]]:
    """By name: the first layers one by one and together, then everything."""
    inventories = analyze(workload, allow_factories=True).inventories
    order = {(each.query, layer.path): place for each in inventories for place, layer in enumerate(each.layers)}
    shared = MergeConfiguration.of(groups).shared
    ordered = sorted(shared, key=lambda layer: min(order[tuple(member)] for member in layer.members))
    for layer in ordered[:first]:
        yield layer.members[0].layer, [layer]
    if first > 1:
        yield f"first {first} layers", ordered[:first]
    yield "everything across models", list(shared)


def in_the_way(layers: list[SharedLayer], way: Way) -> MergeConfiguration:
    """The configuration that shares these layers in a way; what cannot have corrections is shared without."""
    if way.is_halved:
        halved = [layer.among(layer.members[: (len(layer.members) + 1) // 2]) for layer in layers]
        return MergeConfiguration(shared=tuple(layer for layer in halved if layer is not None))
    return MergeConfiguration(shared=tuple(layer.corrected(way.rank) or layer for layer in layers))


def freeze(retraining: JointRetraining, configuration: MergeConfiguration, trains: str) -> None:
    """Let only what is to be trained have gradients."""
    shared = {member for layer in configuration.shared for member in layer.members}
    for query, model in retraining.models.items():
        kept = {
            id(parameter)
            for path, module in model.named_modules()
            if isinstance(module, _NORMS) or (trains == "shared" and (query, path) in shared)
            for parameter in module.parameters(recurse=False)
        }
        for parameter in model.parameters():
            parameter.requires_grad_(trains == "everything" or id(parameter) in kept)


def tried(
    models: Mapping[str, nn.Module],
    data: Mapping[str, QueryData],
    configuration: MergeConfiguration,
    way: Way,
    steps: int,
) -> tuple[float, float]:
    """The worst query's best validation, and the gate then."""
    options = RetrainOptions(
        max_steps=steps, start=way.start, objective=way.objective, validate_every=30, gives_up=False
    )
    retraining = JointRetraining(
        {query: deepcopy(models[query]) for query in configuration.queries}, data, configuration, options
    )
    freeze(retraining, configuration, way.trains)
    *_, last = retraining.run()
    gate = retraining.score("gate")
    return (min(score.estimate for score in scores.values()) for scores in (last.scores, gate))  # type: ignore[return-value]


def bench(workload: Workload, options: argparse.Namespace) -> Iterator[list[Any]]:
    """Rows as in COLUMNS."""
    aimed = workload.aimed_at(_OUT_OF_REACH)
    models = originals_of_workload(aimed, allow_factories=True)
    data = {name: with_teacher(part, models[name]) for name, part in read_workload_data(aimed).items()}
    groups = analyze(workload, allow_factories=True).groups
    for name, layers in additions_of(groups, workload, options.first):
        for way in options.ways:
            configuration, begun_s = in_the_way(layers, WAYS[way]), time.process_time()
            if configuration.shared:
                validation, gate = tried(models, data, configuration, WAYS[way], options.steps)
                took_s = round(time.process_time() - begun_s, 1)
                yield [name, way, configuration.saved_bytes, round(validation, 4), round(gate, 4), took_s]


def main() -> None:
    """Train, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, help="the folder with cameras/, cifar10/ and weights/")
    parser.add_argument("--folder", type=Path, default=Path("bench-merge"), help="for workloads and their originals")
    parser.add_argument("--workloads", nargs="+", default=["strangers", "cifar"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--first", type=int, default=2, help="layers from the input on, one by one")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1, help="originals trained at once")
    parser.add_argument("--machine", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = records.heading("bench_fallbacks") | {
        "options": {key: str(value) for key, value in vars(options).items()},
        "columns": COLUMNS,
        "workloads": {},
    }
    for name in options.workloads:
        rows = record["workloads"][name] = []
        for row in bench(bench_merge.prepared(name, options), options):
            rows.append(row)
            print(f"{name:10} {row[0]:28} {row[1]:45} validation {row[3]:.3f}, gate {row[4]:.3f}", flush=True)
            records.path_of(record, options.machine).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Benchmark: all policies of policy.baselines on generated workloads of full-size torchvision models, simulated.

    python jobs/bench_edge.py --workloads 40 --seed 0

Nothing is trained or allocated: sizes are read on the meta device, FLOPs are those torchvision publishes, times are
estimated from a device's published rates. The record goes to jobs/results/, a table to stdout.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import gemel_ray
from gemel_ray.edge.simulation import Simulation, simulate
from gemel_ray.policy.baselines import POLICIES
from gemel_ray.policy.estimates import RATES, ModelCost, estimate_profile, find_rates
from gemel_ray.policy.grouping import group_layers
from gemel_ray.policy.sharing import ModelLayer, ServedModel
from gemel_ray.spec.layers import LayerRef, ModelInventory
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.inspection import inspect_spec
from gemel_ray.vision.models import build_model

RESULTS = Path(__file__).parent / "results"
# Side of a classifier's input; detectors get 800 x 1344, what their transform makes of a 16:9 frame, SSDs their own.
CLASSIFIERS = {
    name: (224, 224)
    for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16", "vgg19", "mobilenet_v3_large",
        "efficientnet_b0", "densenet121", "convnext_tiny", "swin_t", "vit_b_16",
    )
}  # fmt: skip
DETECTORS = {
    "fasterrcnn_resnet50_fpn": (800, 1344),
    "retinanet_resnet50_fpn": (800, 1344),
    "ssd300_vgg16": (300, 300),
    "ssdlite320_mobilenet_v3_large": (320, 320),
}
INPUTS = CLASSIFIERS | DETECTORS
CLASSES = ("background", "car", "person", "bicycle", "bus", "truck")
COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 50)
FPS = (5, 10, 15, 30)
SLO_MS = (50, 100, 200, 400)
# The most of the device's time that all frames would take one by one, were all models resident. Mostly within what
# the device can compute, since more of it is no question of memory.
LOADS = (0.3, 0.6, 0.9, 1.2)
# Of the way from just the largest model to everything unmerged.
LEVELS = (0.0, 0.25, 0.5, 0.75)
# The share of queries that ask what another one asks, of another camera, with the very same weights.
SAME_MODEL_FRACTION = 0.1
# A stem ends where its models' own features begin.
STEM_FRACTION = 0.5


@dataclass(frozen=True)
class Asked:
    """One query of a generated workload; `model` names the query whose weights it uses, usually its own."""

    name: str
    architecture: str
    classes: int
    fps: float
    slo_ms: float
    model: str


@cache
def inventory(architecture: str, classes: int) -> ModelInventory:
    """Layers and bytes, read on the meta device."""
    return inspect_spec("", ModelSpec(architecture=architecture, classes=CLASSES[:classes]))


@cache
def cost(architecture: str) -> ModelCost:
    """FLOPs as torchvision publishes them (multiply-adds), activations of a forward pass of the backbone on meta."""
    published = torchvision.models.get_model_weights(architecture).DEFAULT.meta["_ops"]
    outputs, peak_bytes = _activations(architecture)
    return ModelCost(
        flops=2e9 * published,
        weight_bytes=inventory(architecture, 2).total_bytes,
        activation_bytes=2 * outputs,
        workspace_bytes=peak_bytes,
    )


def _activations(architecture: str) -> tuple[int, int]:
    """Bytes of all leaf modules' outputs, and the most that one leaf's inputs and outputs take together."""
    with torch.device("meta"):
        model = build_model(ModelSpec(architecture=architecture, classes=CLASSES[:2])).eval()
        model = getattr(model, "backbone", model)
        outputs, largest = [0], [0]

        def count(_module: nn.Module, given: object, got: object) -> None:
            out = _tensor_bytes(got)
            outputs[0] += out
            largest[0] = max(largest[0], out + _tensor_bytes(given))

        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        with torch.no_grad():
            model(torch.empty(1, 3, *INPUTS[architecture]))
    return outputs[0], largest[0]


def _tensor_bytes(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_tensor_bytes, value)) if isinstance(value, (tuple, list)) else 0


def generate(rng: random.Random, device: str) -> list[Asked]:
    """A workload that the device could more or less compute, were memory endless: the first one drawn within a load
    that is drawn, too; after fifty draws the lightest of them."""
    count, load = rng.choice(COUNTS), rng.choice(LOADS)
    drawn = []
    for _ in range(50):
        drawn.append(draw(rng, device, count))
        if load_of(drawn[-1], device) <= load:
            return drawn[-1]
    return min(drawn, key=lambda asked: load_of(asked, device))


def load_of(asked: Sequence[Asked], device: str) -> float:
    """Share of time that computing every frame by itself takes."""
    return sum(each.fps * _run_ms(each.architecture, device) / 1000 for each in asked)


def draw(rng: random.Random, device: str, count: int) -> list[Asked]:
    """A few architectures, more queries than that, each with its own camera, rate and SLO."""
    architectures = rng.sample(sorted(INPUTS), min(rng.randint(1, 6), count))
    asked: list[Asked] = []
    for place in range(count):
        name, fps = f"q{place:02}", rng.choice(FPS)
        if asked and rng.random() < SAME_MODEL_FRACTION:
            twin = rng.choice(asked)
            asked.append(Asked(name, twin.architecture, twin.classes, fps, twin.slo_ms, twin.model))
            continue
        architecture = rng.choice(architectures)
        slo_ms = rng.choice([slo for slo in SLO_MS if slo >= 2 * _run_ms(architecture, device)] or [SLO_MS[-1]])
        asked.append(Asked(name, architecture, rng.randint(2, len(CLASSES)), fps, slo_ms, name))
    return asked


@cache
def _run_ms(architecture: str, device: str) -> float:
    return estimate_profile(find_rates(device), {"": cost(architecture)}).run_ms("", 1)


def inventories_of(asked: Sequence[Asked]) -> list[ModelInventory]:
    """One inventory for each distinct model, under the name of its first query."""
    found = {each.model: inventory(each.architecture, each.classes) for each in asked}
    return [ModelInventory(name, each.builder, each.layers, each.other_bytes) for name, each in found.items()]


def merged_copies(asked: Sequence[Asked], fraction: float) -> dict[LayerRef, str]:
    """Layer groups in memory-forward order, until that fraction of all shareable bytes is shared."""
    groups = group_layers(inventories_of(asked))
    wanted_bytes = fraction * sum(group.saved_bytes for group in groups)
    copies: dict[LayerRef, str] = {}
    for number, group in enumerate(groups):
        if wanted_bytes <= 0:
            break
        wanted_bytes -= group.saved_bytes
        copies |= dict.fromkeys(group.members, f"group{number}")
    return copies


def stem_copies(asked: Sequence[Asked]) -> dict[LayerRef, str]:
    """The first half of the layers, one copy for each architecture."""
    return {
        LayerRef(each.query, layer.path): f"{each.builder}/{layer.path}"
        for each in inventories_of(asked)
        for layer in each.layers[: int(len(each.layers) * STEM_FRACTION)]
    }


def models_of(asked: Sequence[Asked], copies: dict[LayerRef, str]) -> dict[str, ServedModel]:
    """The queries as values for the simulation."""
    models = {}
    for each in asked:
        found = inventory(each.architecture, each.classes)
        layers = [
            ModelLayer(
                layer.bytes, copies.get(LayerRef(each.model, layer.path), own := f"{each.model}/{layer.path}"), own
            )
            for layer in found.layers
        ]
        rest = f"{each.model}/"
        models[each.name] = ServedModel((*layers, ModelLayer(found.other_bytes, rest, rest)), each.fps, each.slo_ms)
    return models


def budgets(asked: Sequence[Asked], profile: DeviceProfile) -> dict[float, int]:
    """Memory levels in bytes: from just the largest model at batch size 1 to a part of everything."""
    weights = {each.name: inventory(each.architecture, each.classes).total_bytes for each in asked}
    workspace = {name: profile.queries[name].workspace_bytes[1] for name in weights}
    least = max(weights[name] + workspace[name] for name in weights)
    everything = max(sum(weights.values()) + max(workspace.values()), least)
    return {level: int(least + level * (everything - least)) for level in LEVELS}


def bench(asked: Sequence[Asked], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each memory level and policy."""
    profile = estimate_profile(find_rates(options.device), {each.name: cost(each.architecture) for each in asked})
    merged = models_of(asked, merged_copies(asked, options.merged_fraction))
    variants = defaultdict(lambda: merged, stem=models_of(asked, stem_copies(asked)))
    rows = []
    for level, budget_bytes in budgets(asked, profile).items():
        for policy in options.policies:
            begun = time.perf_counter()
            found = simulate(
                variants[policy], profile, policy, budget_bytes=budget_bytes, duration_ms=options.seconds * 1000
            )
            rows.append({"level": level, **row_of(found), "took_s": round(time.perf_counter() - begun, 3)})
    return rows


def row_of(found: Simulation) -> dict[str, Any]:
    """Raw numbers of one simulation."""
    return {
        "policy": found.policy,
        "budget_bytes": found.budget_bytes,
        "weights_bytes": found.weights_bytes,
        "mean_goodput": found.mean_goodput_fraction,
        "worst_goodput": found.worst_goodput_fraction,
        "goodput": {name: round(value, 5) for name, value in found.goodput_fraction.items()},
        "swap_bytes": found.swap_bytes,
        "busy_fraction": found.busy_fraction,
        "peak_bytes": found.peak_bytes,
        "span_ms": found.span_ms,
    }


def ratios(records: Sequence[dict[str, Any]], level: float, policy: str, base: str) -> list[float]:
    """Mean goodput of a policy by that of the base, for each workload where both answer anything at all."""
    found = []
    for record in records:
        mean = {row["policy"]: row["mean_goodput"] for row in record["rows"] if row["level"] == level}
        if mean[policy] > 0 and mean[base] > 0:
            found.append(mean[policy] / mean[base])
    return found


def is_contested(record: dict[str, Any], level: float, base: str) -> bool:
    """Whether the base policy leaves anything to win: it answers less than 99 % of the frames."""
    return any(row["mean_goodput"] < 0.99 for row in record["rows"] if (row["level"], row["policy"]) == (level, base))


def table(records: Sequence[dict[str, Any]], policies: Sequence[str], base: str) -> Iterable[str]:
    """Goodput (mean over queries, then workloads) and its ratio to the base policy's, as a geometric mean.

    'contested': over the workloads of which the base policy answers less than 99 %. 'behind': workloads with a ratio
    below 0.999.
    """
    yield f"goodput, ratios to {base}"
    heads = f"{'mean':>6} {'worst':>6} {'ratio':>6} {'contested':>14} {'least':>6} {'behind':>7}"
    yield f"{'memory':>7} {'policy':<20} {heads}"
    for level in LEVELS:
        contested = [record for record in records if is_contested(record, level, base)]
        for policy in policies:
            own = [
                row for record in records for row in record["rows"] if (row["level"], row["policy"]) == (level, policy)
            ]
            every, hard = ratios(records, level, policy, base), ratios(contested, level, policy, base)
            yield (
                f"{level:>7.0%} {policy:<20} {statistics.fmean(row['mean_goodput'] for row in own):>6.3f} "
                f"{statistics.fmean(row['worst_goodput'] for row in own):>6.3f} {_geometric_mean(every):>6.2f} "
                f"{_geometric_mean(hard):>6.2f} of {len(hard):>4} {min(every, default=math.nan):>6.3f} "
                f"{sum(ratio < 0.999 for ratio in every):>4}/{len(every)}"
            )


def _geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values) if values else math.nan


def record_of(options: argparse.Namespace, records: list[dict[str, Any]]) -> dict[str, Any]:
    """All that is needed to read the numbers, or to get them again."""
    return {
        "benchmark": "bench_edge",
        "command": "python jobs/bench_edge.py " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"processor": platform.machine(), "system": platform.system(), "simulated": options.device},
        "versions": {
            "python": platform.python_version(),
            "gemel_ray": gemel_ray.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "options": vars(options),
        "policies": {name: POLICIES[name].about for name in options.policies},
        "workloads": records,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="of traffic that is simulated")
    parser.add_argument("--device", choices=sorted(RATES), default="t4")
    parser.add_argument("--merged-fraction", type=float, default=0.97, help="of the shareable bytes")
    parser.add_argument("--base", default="time_space", help="the policy that the others are compared with")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--name", default="", help="added to the record's file name")
    parser.add_argument("--no-record", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Simulate, print, record."""
    options = parse()
    rng = random.Random(options.seed)
    records = []
    for number in range(options.workloads):
        asked = generate(rng, options.device)
        rows = bench(asked, options)
        load = load_of(asked, options.device)
        records.append({"load": round(load, 3), "queries": [vars(each) for each in asked], "rows": rows})
        counts = Counter(each.architecture for each in asked)
        print(f"{number + 1}/{options.workloads}: {len(asked)} queries of {dict(counts)}", file=sys.stderr, flush=True)
    print("\n".join(table(records, options.policies, options.base)))
    if not options.no_record:
        RESULTS.mkdir(exist_ok=True)
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        path = RESULTS / f"bench_edge{options.name}_{options.device}-simulated_{day}.json"
        path.write_text(json.dumps(record_of(options, records)) + "\n")
        print(f"recorded in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()

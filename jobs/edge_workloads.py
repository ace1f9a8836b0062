"""Workloads for the simulated benchmarks, generated: full-size torchvision models, rates, deadlines, memory levels.

Nothing is trained or allocated: sizes are read on the meta device, FLOPs are those torchvision publishes, times are
estimated from a device's published rates. A `Case` is plain values: whoever simulates it needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torchvision
from torch import nn

from gemel_ray.edge.traffic import Camera
from gemel_ray.policy.estimates import ModelCost, estimate_profile, find_rates
from gemel_ray.policy.grouping import group_layers
from gemel_ray.policy.sharing import ModelLayer, Models, ServedModel
from gemel_ray.spec.layers import LayerRef, ModelInventory
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.inspection import inspect_spec
from gemel_ray.vision.models import build_model

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
# Small nodes are drawn more often: our choice, so that a study takes minutes.
COUNTS = (2, 2, 3, 3, 4, 4, 6, 6, 8, 8, 12, 12, 16, 16, 24, 32, 50)
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


@dataclass(frozen=True)
class Case:
    """A workload ready to be simulated. `stems` are the same models where a common prefix is all that is shared."""

    asked: tuple[Asked, ...]
    load: float
    profile: DeviceProfile
    merged: Models
    stems: Models
    budget_bytes: Mapping[float, int]
    # First frames at times drawn at random, other than those that a plan is chosen on.
    cameras: tuple[Camera, ...]

    @property
    def is_family(self) -> bool:
        """Whether all queries use one architecture, so that a merge can share nearly everything."""
        return len({each.architecture for each in self.asked}) == 1


def case_of(rng: random.Random, device: str, merged_fraction: float) -> Case:
    """Draw a workload for a device of known rates; `merged_fraction` of the shareable bytes are shared."""
    asked = tuple(generate(rng, device))
    profile = estimate_profile(find_rates(device), {each.name: cost(each.architecture) for each in asked})
    return Case(
        asked=asked,
        load=load_of(asked, device),
        profile=profile,
        merged=models_of(asked, merged_copies(asked, merged_fraction)),
        stems=models_of(asked, stem_copies(asked)),
        budget_bytes=budgets(asked, profile),
        cameras=tuple(Camera(each.name, each.fps, each.slo_ms, rng.uniform(0, 1000 / each.fps)) for each in asked),
    )


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
        own_bytes = {layer.path: layer.bytes for layer in found.layers} | {"": found.other_bytes}
        layers = tuple(
            ModelLayer(
                count_bytes,
                copies.get(LayerRef(each.model, path), f"{each.model}/{path}"),
                original=f"{each.model}/{path}",
                path=path,
            )
            for path, count_bytes in own_bytes.items()
        )
        models[each.name] = ServedModel(layers, each.fps, each.slo_ms)
    return models


def budgets(asked: Sequence[Asked], profile: DeviceProfile) -> dict[float, int]:
    """Memory levels in bytes: from just the largest model at batch size 1 to a part of everything."""
    weights = {each.name: inventory(each.architecture, each.classes).total_bytes for each in asked}
    workspace = {name: profile.queries[name].workspace_bytes[1] for name in weights}
    least = max(weights[name] + workspace[name] for name in weights)
    everything = max(sum(weights.values()) + max(workspace.values()), least)
    return {level: int(least + level * (everything - least)) for level in LEVELS}

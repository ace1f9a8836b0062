"""The workloads of bench_merge: real cameras, real strangers, and procedural streets where boxes are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import yaml

_CAMERAS = {
    "bottles": ("intel-bottles", "bottle"),
    "cars": ("intel-car-topdown", "vehicle"),
    "lobby": ("intel-person-lobby", "person"),
    "intersection": ("intersection-topdown", "vehicle"),
    "road": ("road-day", "vehicle"),
}
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Bench:
    """One workload: its document, and how its originals come about."""

    document: dict[str, Any]
    family: bool = True
    steps: int = 200
    # Its weights are published ones; nothing is trained.
    trained_elsewhere: bool = False


def write(name: str, video: Path, folder: Path) -> Bench:
    """Write the workload's file into `folder`; what its feeds need beside `video` too."""
    folder.mkdir(parents=True, exist_ok=True)
    bench = MAKERS[name](video, folder)
    document = {"name": name, "nodes": [{"name": "box", "memory": "64MiB"}]} | bench.document
    (folder / "workload.yaml").write_text(yaml.safe_dump(document, sort_keys=False, width=120), encoding="utf-8")
    return bench


def _tiles(video: Path, asked: Sequence[tuple[str, str, str]], input_size: int = 64) -> dict[str, Any]:
    """Queries of (name, camera, architecture) on real cameras: is the target in this tile?"""
    cameras = dict.fromkeys(camera for _, camera, _ in asked)
    return {
        "defaults": {"fps": 10, "slo_ms": 200},
        "feeds": {
            camera: {"kind": "tiles", "path": str((video / "cameras" / _CAMERAS[camera][0]).resolve())}
            for camera in cameras
        },
        "queries": [_query(name, camera, architecture, input_size) for name, camera, architecture in asked],
    }


def _query(name: str, camera: str, architecture: str, input_size: int) -> dict[str, Any]:
    return {
        "name": name,
        "feed": camera,
        "model": {
            "architecture": architecture,
            "classes": ["background", _CAMERAS[camera][1]],
            "input_size": input_size,
            "weights": f"originals/{name}.safetensors",
        },
    }


def _one_each(video: Path, architecture: str) -> dict[str, Any]:
    return _tiles(video, [(camera, camera, architecture) for camera in _CAMERAS])


def _family(video: Path, _folder: Path) -> Bench:
    return Bench(_one_each(video, "resnet18_half"))


def _strangers(video: Path, _folder: Path) -> Bench:
    return Bench(_one_each(video, "resnet18_half"), family=False)


def _full_width(video: Path, _folder: Path) -> Bench:
    return Bench(_one_each(video, "resnet18"), family=False, steps=150)


def _mixed(video: Path, _folder: Path) -> Bench:
    kinds = ("resnet18_half", "resnet34_half", "mobilenet_v3_large", "squeezenet1_1", "mobilenet_v3_large")
    return Bench(_tiles(video, [(camera, camera, kind) for camera, kind in zip(_CAMERAS, kinds, strict=True)]))


def _twelve(video: Path, _folder: Path) -> Bench:
    kinds = {"a": "resnet18_half", "b": "resnet34_half", "c": "mobilenet_v3_large"}
    asked = [(f"{camera}_{short}", camera, kind) for short, kind in kinds.items() for camera in _CAMERAS]
    return Bench(_tiles(video, asked[:12], input_size=48))


def _detectors(_video: Path, _folder: Path) -> Bench:
    feed = {"kind": "streets", "frames": 1000, "width": 160, "height": 96}
    model = {"architecture": "fcos_resnet18_half", "classes": ["background", "vehicle", "person"]}
    document = {
        "defaults": {"fps": 10, "slo_ms": 200},
        "feeds": {name: feed | {"seed": seed} for seed, name in enumerate(("crossing", "avenue"))},
        "queries": [
            {"name": name, "feed": name, "model": model | {"weights": f"originals/{name}.safetensors"}}
            for name in ("crossing", "avenue")
        ],
    }
    return Bench(document, steps=300)


def _cifar(video: Path, folder: Path) -> Bench:
    """resnet20 and resnet32 as their author published them: strangers of ten classes."""
    _write_images(video / "cifar10" / "cifar.npz", folder / "images")
    weights = {20: "akamaster-resnet20-12fca82f.th", 32: "akamaster-resnet32-d509ac18.th"}
    document = {
        "defaults": {"fps": 10, "slo_ms": 200},
        "feeds": {"images": {"kind": "image_folder", "path": "images"}},
        "queries": [
            {
                "name": f"resnet{depth}",
                "feed": "images",
                "model": {
                    "factory": "cifar_models:build",
                    "task": "classification",
                    "classes": list(_CIFAR),
                    "input_size": 32,
                    "options": {"depth": depth},
                    "weights": str((video / "weights" / file).resolve()),
                },
            }
            for depth, file in weights.items()
        ],
    }
    return Bench(document, trained_elsewhere=True)


def _write_images(archive: Path, folder: Path) -> None:
    """Train and test images one after the other; the feed splits them anew."""
    if folder.is_dir():
        return
    found = np.load(archive)
    images = np.concatenate([found["x_train"], found["x_test"]])
    labels = np.concatenate([found["y_train"], found["y_test"]])
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / _CIFAR[int(label)] / f"{place:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)


MAKERS: dict[str, Callable[[Path, Path], Bench]] = {
    "family": _family,
    "strangers": _strangers,
    "full-width": _full_width,
    "cifar": _cifar,
    "mixed": _mixed,
    "detectors": _detectors,
    "twelve": _twelve,
}

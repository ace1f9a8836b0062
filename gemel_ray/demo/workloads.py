"""The workloads of the demonstration, written out as files that a user can change and run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gemel_ray.spec.errors import FeedError, InputError, nearest
from gemel_ray.weights.outputs import write_output

# Fifteen frames a second, each answered before the next one comes.
_DEFAULTS = {"accuracy_target": 0.95, "fps": 15, "slo_ms": 66}
# What small frames and short training leave within reach, and as many frames as keep four small models busy.
_QUICK_DEFAULTS = {"accuracy_target": 0.9, "fps": 25, "slo_ms": 40}
ORIGINALS = "originals"
_GO_ON = (
    f"gemel originals workload.yaml --out {ORIGINALS}; gemel search workload.yaml --store store; "
    "gemel serve workload.yaml --store store"
)


@dataclass(frozen=True, slots=True)
class _Camera:
    """One camera with its one query: `shows` is the class that is asked for."""

    name: str
    shows: str
    architecture: str
    # Name of the folder below cameras/, for real cameras.
    folder: str = ""


_STREETS = (
    _Camera("north", "vehicle", "resnet18_half"),
    _Camera("east", "vehicle", "resnet18_half"),
    _Camera("south", "vehicle", "resnet18_half"),
    _Camera("west", "vehicle", "resnet34_half"),
    _Camera("bridge", "vehicle", "resnet34_half"),
)
_REAL = (
    _Camera("bottles", "bottle", "resnet18_half", "intel-bottles"),
    _Camera("cars", "vehicle", "resnet18_half", "intel-car-topdown"),
    _Camera("lobby", "person", "resnet18_half", "intel-person-lobby"),
    _Camera("intersection", "vehicle", "resnet34_half", "intersection-topdown"),
    _Camera("road", "vehicle", "resnet34_half", "road-day"),
)


def streets_document(*, quick: bool) -> dict[str, Any]:
    """Procedural street cameras; `quick` takes four small ones instead of five."""
    cameras = _STREETS[:4] if quick else _STREETS
    feeds = {
        camera.name: {"kind": "streets", "seed": seed, "frames": 2000 if quick else 4000, "traffic": 1.2}
        for seed, camera in enumerate(cameras)
    }
    if quick:
        return _document("demo-quick", cameras, feeds, "24MiB", input_size=32, **_QUICK_DEFAULTS)
    return _document("demo", cameras, feeds, input_size=48)


def cameras_document(video: Path) -> dict[str, Any]:
    """Five real cameras out of a folder that holds cameras/NAME/tiles.jsonl. FeedError where one is missing."""
    for camera in _REAL:
        if not (video / "cameras" / camera.folder / "tiles.jsonl").is_file():
            there = sorted(path.name for path in (video / "cameras").glob("*") if path.is_dir())
            raise FeedError(
                f"--video {video}: there is no cameras/{camera.folder}/tiles.jsonl; {nearest(camera.folder, there)}"
            )
    feeds = {
        camera.name: {"kind": "tiles", "path": str((video / "cameras" / camera.folder).resolve())} for camera in _REAL
    }
    return _document("demo-cameras", _REAL, feeds, input_size=64)


def _document(
    name: str,
    cameras: tuple[_Camera, ...],
    feeds: Mapping[str, Mapping[str, Any]],
    memory: str = "32MiB",
    *,
    input_size: int,
    **defaults: float,
) -> dict[str, Any]:
    return {
        "name": name,
        "defaults": _DEFAULTS | defaults,
        "feeds": dict(feeds),
        "queries": [_query(camera, input_size) for camera in cameras],
        # Less than half of what the originals take.
        "nodes": [{"name": "box", "memory": memory, "device": "cpu"}],
    }


def _query(camera: _Camera, input_size: int) -> dict[str, Any]:
    name = f"{camera.name}_{camera.shows}"
    model = {
        "architecture": camera.architecture,
        "classes": ["background", camera.shows],
        "input_size": input_size,
        "weights": f"{ORIGINALS}/{name}.safetensors",
    }
    return {"name": name, "feed": camera.name, "model": model}


def write_workload(document: Mapping[str, Any], path: Path) -> None:
    """Write a workload file with a word on what it is. InputError where one lies there that somebody changed."""
    written = [_rendered(each) for each in (document, streets_document(quick=True), streets_document(quick=False))]
    try:
        there = path.read_bytes() if path.exists() else written[0]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct that, or give another --out") from error
    if there not in written:
        raise InputError(
            f"{path} is not as this command writes it, and would be written over; give another --out, or remove it. "
            f"To go on with it, in {path.parent}: {_GO_ON}"
        )
    write_output(path, written[0])


def _rendered(document: Mapping[str, Any]) -> bytes:
    head = f"# Written by `gemel demo`. Change it, then, in this folder: {_GO_ON}\n"
    return (head + yaml.safe_dump(dict(document), sort_keys=False, width=120)).encode()

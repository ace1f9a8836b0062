"""The walk: cameras and originals, a parallel merge search, a release, and two services under the same budget."""

from __future__ import annotations

import io
import json
import os
import socket
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from gemel_ray.demo.comparison import Played, Recording, play, record
from gemel_ray.demo.workloads import ORIGINALS, cameras_document, streets_document, write_workload
from gemel_ray.merging.options import SearchOptions
from gemel_ray.merging.searching import search, search_name
from gemel_ray.merging.session import ray_session
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.serving.local import Service, serve_release, serve_session
from gemel_ray.serving.options import NodeOptions
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import format_bytes
from gemel_ray.spec.workload import Workload, load_workload
from gemel_ray.training.data import QueryData, read_workload_data
from gemel_ray.training.fleet import Original, train_fleet
from gemel_ray.vision.inspection import analyze
from gemel_ray.weights.maintenance import originals_of
from gemel_ray.weights.outputs import write_output
from gemel_ray.weights.store import Store, open_store

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Where everything goes, and how much of it. `video` is a folder with cameras/NAME/tiles.jsonl."""

    folder: Path
    quick: bool = False
    video: Path | None = None
    seed: int = 0
    parallel: int = 2


# The demonstration's cameras leave a few hundred gate frames, so bounds lie wide below their estimates.
_GATE_MARGIN = 0.04


@dataclass(frozen=True, slots=True)
class _Effort:
    """How long each part may take."""

    original_steps: int
    trial_steps: int
    trials: int
    play_seconds: float


_QUICK = _Effort(original_steps=150, trial_steps=120, trials=6, play_seconds=4)
_FULL = _Effort(original_steps=180, trial_steps=120, trials=8, play_seconds=15)
_REAL = _Effort(original_steps=200, trial_steps=200, trials=16, play_seconds=20)


def run_demo(options: DemoOptions, report: Report) -> dict[str, Any]:
    """Walk through everything in `options.folder`; what is there from an earlier walk is used again.

    Gives the document that `gemel demo --json` prints, which is also left in the folder as result.json.
    """
    began_s = time.monotonic()

    def tell(line: str) -> None:
        report(f"[{time.monotonic() - began_s:5.0f} s] {line}")

    workload, path = _workload(options, tell)
    effort = _REAL if options.video else _QUICK if options.quick else _FULL
    data = read_workload_data(workload, needs_labels=True)
    originals = train_fleet(
        workload,
        options.folder / ORIGINALS,
        steps=effort.original_steps,
        seed=options.seed,
        family=True,
        parallel=options.parallel,
        data=data,
        report=tell,
    )
    store = open_store(options.folder / "store", create=True)
    # Ray's workers give way to everything else on the machine, which an engine that answers cameras must not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with ray_session():
        merged = _search(workload, data, store, options, effort, tell)
        first = originals_of(store, merged)
        played = _compare(workload, data, store, (first, merged), effort, tell)
    document = _document(workload, path, originals, merged, played, options) | {"seconds": time.monotonic() - began_s}
    write_output(options.folder / "result.json", json.dumps(document, indent=1).encode())
    return document


def _workload(options: DemoOptions, tell: Report) -> tuple[Workload, Path]:
    document = cameras_document(options.video) if options.video else streets_document(quick=options.quick)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {options.folder}: is no folder to write to ({error.strerror}); give another"
        ) from error
    path = options.folder / "workload.yaml"
    write_workload(document, path)
    workload = load_workload(path)
    tell(f"{len(workload.queries)} queries on {len(workload.feeds)} cameras: {path}")
    return workload, path


def _search(
    workload: Workload,
    data: Mapping[str, QueryData],
    store: Store,
    options: DemoOptions,
    effort: _Effort,
    tell: Report,
) -> Manifest:
    tell(f"searching what can be shared, {options.parallel} trials at once on Ray Tune")
    found = search(
        workload,
        store.locate().rstrip("/"),
        SearchOptions(
            parallel=options.parallel,
            seed=options.seed,
            settings=SearchSettings(max_trials=effort.trials, max_steps=effort.trial_steps, gate_margin=_GATE_MARGIN),
            resume=store.read_state(search_name(workload)) is not None,
        ),
        tell,
        data,
    )
    tell(f"release {found.release}: {format_bytes(found.bytes_before)} became {format_bytes(found.bytes_after)}")
    return found


def _compare(
    workload: Workload,
    data: Mapping[str, QueryData],
    store: Store,
    releases: tuple[Manifest, Manifest],
    effort: _Effort,
    tell: Report,
) -> list[Played]:
    """Serve one release after the other on Ray Serve, and play the same frames to both."""
    (node,) = workload.nodes
    # Weights come from the disk, since the box has no memory beside its budget.
    box = NodeOptions(name=node.name, memory=node.memory, device=node.device, threads=1, reload_from="disk")
    recordings = record(data, seconds=effort.play_seconds)
    location, played = Path(store.locate()), []
    with serve_session(port=_free_port(), shut_down=False):
        for manifest, what in zip(releases, ("the originals", "the merged models"), strict=True):
            tell(f"serving {what} ({format_bytes(manifest.bytes_after)}) in {format_bytes(node.memory)} on Ray Serve")
            with serve_release(
                location, nodes=[box], release=manifest.release, cache=location.parent / "cache"
            ) as service:
                tell(f"playing {effort.play_seconds:.0f} s of every camera")
                played.append(play(service, node.name, recordings))
                _ask_over_http(service, recordings, tell)
    return played


def _ask_over_http(service: Service, recordings: dict[str, Recording], tell: Report) -> None:
    """One frame of every camera, as a camera would send it."""
    answers = [f"{name}: {_asked(service.url, name, recording.frames[0])}" for name, recording in recordings.items()]
    tell(f"POST {service.url}/v1/queries/QUERY/frames answered {', '.join(answers)}")


def _asked(url: str, query: str, frame: np.ndarray) -> str:
    picture = io.BytesIO()
    PIL.Image.fromarray(frame).save(picture, "PNG")
    request = urllib.request.Request(
        f"{url}/v1/queries/{query}/frames?slo_ms=60000", picture.getvalue(), {"Content-Type": "image/png"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return str(json.load(reply)["answer"]["label"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _document(
    workload: Workload,
    path: Path,
    originals: list[Original],
    merged: Manifest,
    played: list[Played],
    options: DemoOptions,
) -> dict[str, Any]:
    before, after = played
    analysis = analyze(workload)
    measured = {original.query: original.gate_accuracy for original in originals}
    return {
        "workload": str(path),
        "store": str(options.folder / "store"),
        "release": merged.release,
        "budget_bytes": workload.nodes[0].memory,
        "bytes_before": merged.bytes_before,
        "bytes_after": merged.bytes_after,
        "shareable_bytes": analysis.shareable_bytes,
        "queries": [
            {
                "query": query.name,
                "architecture": query.model.builder,
                "fps": query.fps,
                "slo_ms": query.slo_ms,
                "original_accuracy": measured[query.name],
                **_accuracy(merged, query.name),
                "goodput": {"originals": before.goodput[query.name], "merged": after.goodput[query.name]},
                "end_to_end_accuracy": {
                    "originals": before.accuracy[query.name],
                    "merged": after.accuracy[query.name],
                },
            }
            for query in workload.queries
        ],
        "originals": asdict(before),
        "merged": asdict(after),
    }


def _accuracy(manifest: Manifest, query: str) -> dict[str, float | int | None]:
    """What the release says of a query; one that nothing was shared with is its original still."""
    found = manifest.queries[query].accuracy
    return {
        "merged_accuracy": found.merged_accuracy if found else None,
        "agreement": found.agreement if found else 1.0,
        "lower_bound": found.lower_bound if found else None,
        "gate_frames": found.gate_frames if found else None,
        "target": manifest.queries[query].query.accuracy_target,
    }

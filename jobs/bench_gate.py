"""Benchmark: whether what passed the gate keeps its promise on frames that came after the search.

    python jobs/bench_gate.py --searches 3 --minutes 4

Drawn street cameras go on as long as one likes. Each search merges the models of some of them; every query of every
release that a search published passed the gate then, after more and more candidates were held against the same frames.
Here each is held against frames that nobody had seen. One thread, no Ray.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import records
import torch
from merge_methods import Setting, ours
from torch import nn

from gemel_ray.merging.starting import originals_of_workload
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.answers import Answer
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Query, Workload, parse_workload
from gemel_ray.training.data import read_workload_data, run_model, with_teacher
from gemel_ray.training.fleet import train_fleet
from gemel_ray.training.releases import publish_originals
from gemel_ray.vision.checkpoints import put_state
from gemel_ray.vision.feeds import open_feed
from gemel_ray.vision.metrics import compare
from gemel_ray.vision.models import build_model, training_device
from gemel_ray.vision.tasks import Image, Task, task_for
from gemel_ray.weights.models import BlobReader, load_state
from gemel_ray.weights.store import Store, open_store

Row = dict[str, Any]


def cameras(options: argparse.Namespace, search: int, folder: Path) -> Workload:
    """Street cameras that no other search has, and a query on each."""
    names = [f"camera{number}" for number in range(options.cameras)]
    model = {"architecture": options.architecture, "classes": ["background", "vehicle"], "input_size": 32}
    document = {
        "name": "drawn",
        "defaults": {"accuracy_target": options.target},
        "feeds": {
            name: {"kind": "streets", "frames": options.frames, "seed": options.cameras * search + number}
            for number, name in enumerate(names)
        },
        "queries": [
            {"name": name, "feed": name, "model": model | {"weights": f"originals/{name}.safetensors"}}
            for name in names
        ],
    }
    return parse_workload(document, source="drawn", base=folder)


def originals(workload: Workload, options: argparse.Namespace, folder: Path) -> dict[str, nn.Module]:
    """Models trained on the feeds' labels, from one ancestor or each from a start of its own."""
    train_fleet(
        workload, folder / "originals", steps=150, seed=options.seed, family=not options.strangers, parallel=1,
        report=lambda _line: None,
    )  # fmt: skip
    return originals_of_workload(workload, allow_factories=False)


def search(
    workload: Workload, models: dict[str, nn.Module], store: Store, options: argparse.Namespace
) -> tuple[Manifest, int]:
    """Search to the end, or until time is up; the release of the originals, and how many candidates there were."""
    data = {name: with_teacher(part, models[name]) for name, part in read_workload_data(workload).items()}
    root = publish_originals(store, workload, models, seed=options.seed)
    settings = SearchSettings(max_trials=1000, max_steps=options.steps, gate_margin=options.gate_margin)
    until_s = time.process_time() + 60 * options.minutes
    setting = Setting(workload, models, data, store, root, settings, lambda: time.process_time() > until_s)
    return root, len(list(ours(setting)))


class Later(NamedTuple):
    """Frames of a query's camera from where its feed ended, and its original's answers."""

    task: Task
    images: list[Image]
    reference: list[Answer]


def later_frames(workload: Workload, query: Query, original: nn.Module, more: int) -> Later:
    """So many of them."""
    feed, task = workload.feeds[query.feed], task_for(query.model)
    longer = open_feed(query.feed, feed.model_copy(update={"frames": feed.frames + more}))
    images = [task.pixels(frame.image) for frame in itertools.islice(longer.frames(), feed.frames, None)]
    return Later(task, images, run_model(original, task, images)[1])


def passed(store: Store, root: Manifest) -> Iterator[tuple[Manifest, str]]:
    """Each release of a search, with every query that was held against the gate for it."""
    for number in store.releases():
        manifest = store.manifest(number)
        if manifest.parent is not None and number > root.release:
            before = store.manifest(manifest.parent)
            for name, query in manifest.queries.items():
                if query.weights != before.queries[name].weights:
                    yield manifest, name


@torch.inference_mode()
def compared(store: Store, root: Manifest, later: Mapping[str, Later]) -> Iterator[Row]:
    """What the gate said, and what later frames say."""
    read = BlobReader(store)
    for manifest, name in passed(store, root):
        released = manifest.queries[name]
        assert released.accuracy is not None, "a merged query was measured"
        model = build_model(released.query.model)
        put_state(model, load_state(read, released.weights, released.slices))
        task, images, reference = later[name]
        found = compare(reference, run_model(model.to(training_device()), task, images)[1])
        yield {
            "release": manifest.release, "query": name, "gate_frames": released.accuracy.gate_frames,
            "estimate": released.accuracy.agreement, "lower_bound": released.accuracy.lower_bound,
            "later": found.estimate,
            "saved_fraction": 1 - manifest.bytes_after / manifest.bytes_before,
        }  # fmt: skip


def one_search(number: int, options: argparse.Namespace) -> Row:
    """One search from its cameras to later frames."""
    with tempfile.TemporaryDirectory(prefix="gemel-gate-") as folder:
        workload = cameras(options, number, Path(folder))
        models = originals(workload, options, Path(folder))
        store = open_store(str(Path(folder) / "store"), create=True)
        root, candidates = search(workload, models, store, options)
        later = {
            query.name: later_frames(workload, query, models[query.name], options.later) for query in workload.queries
        }
        return {"candidates": candidates, "passed": list(compared(store, root, later))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=3, help="each on cameras of its own")
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--frames", type=int, default=2000, help="of each camera's feed; a sixth is the gate")
    parser.add_argument("--later", type=int, default=3000, help="frames after those")
    parser.add_argument("--architecture", default="resnet18_quarter")
    parser.add_argument("--strangers", action="store_true", help="originals without a common ancestor")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--gate-margin", type=float, default=0.03)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--minutes", type=float, default=4, help="of processor time for each search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default="drawn-cameras")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = records.heading("bench_gate") | {"options": {key: str(value) for key, value in vars(options).items()}}
    record["searches"] = []
    for number in range(options.searches):
        found = one_search(number, options)
        record["searches"].append(found)
        print(f"search {number}: {found['candidates']} candidates", *found["passed"], sep="\n  ", flush=True)
    print(f"raw numbers: {records.write(record, options.machine)}")


if __name__ == "__main__":
    main()

"""Benchmark: whether what passed the gate keeps its promise on frames that came after the search.

    python jobs/bench_gate.py --searches 3 --minutes 4

Drawn street cameras go on as long as one likes. Each search merges the models of some of them; every query of every
release that a search published passed the gate then, after more and more candidates were held against the same frames.
Here each is held against frames that nobody had seen. One thread, no Ray.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import records
import torch
from merge_methods import Setting, ours
from torch import nn

from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Query, Workload, parse_workload
from gemel_ray.training.data import QueryData, SplitData, read_workload_data, run_model, score, stacked, with_teacher
from gemel_ray.training.fleet import train_fleet
from gemel_ray.training.releases import publish_originals
from gemel_ray.vision.checkpoints import load_weights, put_state
from gemel_ray.vision.feeds import open_feed
from gemel_ray.vision.feeds.labels import class_of
from gemel_ray.vision.models import build_model
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
    models = {query.name: build_model(query.model) for query in workload.queries}
    for query in workload.queries:
        load_weights(models[query.name], query.model)
    return models


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


def later_frames(workload: Workload, query: Query, models: dict[str, nn.Module], more: int) -> QueryData:
    """Frames of a query's camera from where its feed ended, with its original's answers."""
    feed = workload.feeds[query.feed]
    frames = list(open_feed(query.feed, feed.model_copy(update={"frames": feed.frames + more})).frames())[feed.frames :]
    data = QueryData(query)
    classes = [class_of(frame, query.model.classes) or "" for frame in frames]
    labels = torch.tensor([query.model.classes.index(found) for found in classes]).numpy()
    split = SplitData(stacked([data.task.pixels(frame.image) for frame in frames]), labels)
    logits, answers = run_model(models[query.name], data.task, split.images)
    return QueryData(query, {"gate": SplitData(split.images, labels, logits=logits, answers=tuple(answers))})


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
def rows_of(store: Store, root: Manifest, later: dict[str, QueryData]) -> Iterator[Row]:
    """What the gate said, and what later frames say."""
    for manifest, name in passed(store, root):
        released = manifest.queries[name]
        assert released.accuracy is not None, "a merged query was measured"
        model = build_model(released.query.model)
        put_state(model, load_state(BlobReader(store), released.weights, released.slices))
        _, answers = run_model(model, later[name].task, later[name].splits["gate"].images)
        estimate, lower_bound = released.accuracy.held
        yield {
            "release": manifest.release, "query": name, "gate_frames": released.accuracy.gate_frames,
            "estimate": estimate, "lower_bound": lower_bound, "later": score(later[name], "gate", answers).estimate,
            "saved_fraction": 1 - manifest.bytes_after / manifest.bytes_before,
        }  # fmt: skip


def one_search(number: int, options: argparse.Namespace) -> Row:
    """One search from its cameras to later frames."""
    with tempfile.TemporaryDirectory(prefix="gemel-gate-") as folder:
        workload = cameras(options, number, Path(folder))
        models = originals(workload, options, Path(folder))
        store = open_store(str(Path(folder) / "store"), create=True)
        root, candidates = search(workload, models, store, options)
        later = {query.name: later_frames(workload, query, models, options.later) for query in workload.queries}
        return {"candidates": candidates, "passed": list(rows_of(store, root, later))}


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

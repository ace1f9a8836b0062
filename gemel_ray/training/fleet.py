"""The originals of a whole workload: trained from its feeds, saved as safetensors, cached by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gemel_ray.spec.workload import Workload
from gemel_ray.training.data import QueryData, read_query_data, run_model, score_on_labels
from gemel_ray.training.originals import common_feed, train_original
from gemel_ray.vision.checkpoints import fit_state
from gemel_ray.vision.models import build_model

Report = Callable[[str], None]
# Raise when training changes in a way that changes its results.
_RECIPE = 2


@dataclass(frozen=True, slots=True)
class Original:
    """One trained original and its accuracy against the feed's labels on the gate split.

    Balanced accuracy for classifiers, F1 at IoU 0.5 for detectors.
    """

    query: str
    builder: str
    weights: str
    gate_accuracy: float | None
    gate_frames: int
    cached: bool

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def train_fleet(
    workload: Workload,
    folder: Path,
    *,
    steps: int,
    seed: int,
    family: bool,
    allow_factories: bool = False,
    report: Report = lambda line: None,
) -> list[Original]:
    """Train every original of a workload into `folder`/QUERY.safetensors; those already there are kept.

    With `family`, models of one architecture descend from a common ancestor trained on all their feeds, which is
    how real fleets come about: everybody fine-tunes the same pretrained backbone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = {q.name: read_query_data(q, workload.feeds[q.feed], needs_labels=True) for q in workload.queries}
    ancestors: dict[str, Mapping[str, torch.Tensor]] = {}
    trained = []
    for place, query in enumerate(workload.queries, start=1):
        key = _content_key(workload, query.name, steps=steps, seed=seed, family=family)
        path = folder / f"{query.name}.safetensors"
        cached = _is_cached(path, key)
        if not cached:
            if family and query.model.builder not in ancestors:
                report(f"training the common ancestor of all {query.model.builder}")
                ancestors[query.model.builder] = _train_ancestor(
                    data, query.model.builder, steps, seed, allow_factories
                )
            report(f"training {query.name} ({place} of {len(data)})")
            ancestor = ancestors.get(query.model.builder)
            model = train_original(
                data[query.name], steps=steps, seed=seed + place, ancestor=ancestor, allow_factories=allow_factories
            )
            _save(model.state_dict(), path, key)
        trained.append(_describe(data[query.name], path, cached, allow_factories))
    return trained


def _train_ancestor(
    data: Mapping[str, QueryData], builder: str, steps: int, seed: int, allow_factories: bool
) -> Mapping[str, torch.Tensor]:
    """Train on the feeds of all models of the builder whose questions have equally many classes as the first's."""
    alike: dict[int, list[QueryData]] = defaultdict(list)
    for part in data.values():
        if part.query.model.builder == builder:
            alike[len(part.query.model.classes)].append(part)
    most = max(alike.values(), key=len)
    return train_original(common_feed(most), steps=steps, seed=seed, allow_factories=allow_factories).state_dict()


def _content_key(workload: Workload, query: str, **settings: object) -> str:
    """What a trained original depends on: with a family, on everybody's feeds."""
    content = {"workload": workload.content_hash(), "query": query, "recipe": _RECIPE, **settings}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_cached(path: Path, key: str) -> bool:
    note = path.with_suffix(".json")
    if not (path.is_file() and note.is_file()):
        return False
    return bool(json.loads(note.read_text()).get("content") == key)


def _save(state: Mapping[str, torch.Tensor], path: Path, key: str) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)
    os.replace(partial, path)
    partial.write_text(json.dumps({"content": key}))
    os.replace(partial, path.with_suffix(".json"))


def _describe(data: QueryData, path: Path, cached: bool, allow_factories: bool) -> Original:
    model = build_model(data.query.model, allow_factories=allow_factories)
    fit_state(model, load_file(path), source=str(path))
    images = data.splits["gate"].images
    _, answers = run_model(model, data.task, images)
    score = score_on_labels(data, "gate", answers)
    accuracy = score.estimate if score else None
    return Original(data.query.name, data.query.model.builder, str(path), accuracy, len(images), cached)

"""The originals of a whole workload: trained from its feeds, saved as safetensors, cached by content."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gemel_ray.spec.errors import GemelError, InputError, brief
from gemel_ray.spec.units import format_bytes
from gemel_ray.spec.workload import Query, Workload
from gemel_ray.training.data import QueryData, read_workload_data, run_model, score_on_labels
from gemel_ray.training.originals import common_feed
from gemel_ray.training.workers import Arrays, TrainingJob, train, trainers
from gemel_ray.vision.checkpoints import fit_state, read_state
from gemel_ray.vision.models import build_model, task_of
from gemel_ray.vision.tasks import check_takes_frames
from gemel_ray.weights.files import Files
from gemel_ray.weights.tensors import encode, tensor_bytes

Report = Callable[[str], None]
# Raise when training changes in a way that changes its results.
_RECIPE = 4
_RATE = 1e-3
# Fine-tuning moves gently: three street cameras' models reach .93 to .97 with half of the steps at this rate (.92 to
# .95 with all steps at the full one), and stay so close to each other that they share more.
_FINE_TUNE_RATE = 3e-4
_FINE_TUNE_FRACTION = 0.5


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
    parallel: int = 1,
    allow_factories: bool = False,
    data: Mapping[str, QueryData] | None = None,
    report: Report = lambda line: None,
) -> list[Original]:
    """Train every original of a workload into `folder`/QUERY.safetensors; those already there are kept.

    With `family`, models of one architecture descend from a common ancestor trained on all their feeds, which is
    how real fleets come about: everybody fine-tunes the same pretrained backbone. `parallel` of them are trained at
    once; the results do not depend on it. `data` spares reading the feeds. Raises InputError for models that cannot
    be trained and for a folder that does not take them, before anything is trained, and StoreError where one cannot
    be saved after all.
    """
    paths = {query.name: folder / f"{query.name}.safetensors" for query in workload.queries}
    absent = [query for query in workload.queries if not paths[query.name].exists()]
    _prepare_folder(folder, sum(_checked_bytes(query, allow_factories) for query in absent))
    data = data or read_workload_data(workload, needs_labels=True)
    frames = {name: _fingerprint(part) for name, part in data.items()}
    keys = {
        query.name: _content_key(workload, query, frames, steps=steps, seed=seed, family=family)
        for query in workload.queries
    }
    missing = [query for query in workload.queries if not _is_cached(paths[query.name], keys[query.name])]
    changed = [query for query in missing if query not in absent]
    _prepare_folder(folder, sum(_checked_bytes(query, allow_factories) for query in changed))
    jobs = {
        query.name: TrainingJob(data[query.name], steps, seed + 1 + place, _RATE, allow_factories=allow_factories)
        for place, query in enumerate(workload.queries)
        if query in missing
    }
    with trainers(parallel if missing else 1) as executor:
        if family:
            jobs = _descended(jobs, data, steps, seed, executor, report)
        for name, state in _trained(jobs, executor, report):
            _save({key: torch.from_numpy(array) for key, array in state.items()}, paths[name], keys[name])
    return [
        _describe(data[query.name], paths[query.name], query not in missing, allow_factories)
        for query in workload.queries
    ]


def _descended(
    jobs: Mapping[str, TrainingJob],
    data: Mapping[str, QueryData],
    steps: int,
    seed: int,
    executor: Executor,
    report: Report,
) -> dict[str, TrainingJob]:
    """The same jobs as gentle fine-tuning of ancestors, which are trained here, one for each architecture."""
    builders = {name: data[name].query.model.builder for name in jobs}
    elders = {
        builder: TrainingJob(
            _common_feed(data, builder),
            steps,
            seed,
            _RATE,
            allow_factories=any(j.allow_factories for j in jobs.values()),
        )
        for builder in dict.fromkeys(builders.values())
    }
    told = {f"the common ancestor of all {builder}": job for builder, job in elders.items()}
    ancestors = dict(zip(elders, (state for _, state in _trained(told, executor, report, ordered=True)), strict=True))
    return {name: _fine_tuned(job, ancestors[builders[name]]) for name, job in jobs.items()}


def _fine_tuned(job: TrainingJob, ancestor: Arrays) -> TrainingJob:
    # Detectors are far from done when their ancestor is: with 150 steps, two street cameras' reach F1 .68 and .59
    # gently, .80 and .73 at the full rate.
    if task_of(job.data.query.model) == "detection":
        return replace(job, ancestor=ancestor)
    steps = max(1, round(_FINE_TUNE_FRACTION * job.steps))
    return replace(job, ancestor=ancestor, learning_rate=_FINE_TUNE_RATE, steps=steps)


def _trained(
    jobs: Mapping[str, TrainingJob], executor: Executor, report: Report, *, ordered: bool = False
) -> Iterator[tuple[str, Arrays]]:
    """Every job's name and result as it ends, or in order."""
    running = {executor.submit(train, job): name for name, job in jobs.items()}
    if running:
        report(f"training {', '.join(jobs)}")
    problem: Exception | None = None
    for number, done in enumerate(running if ordered else as_completed(running), start=1):
        try:
            state = done.result()
        except BrokenProcessPool as error:
            raise GemelError(
                f"the process that trained {running[done]} was killed; is memory short? Try --parallel 1"
            ) from error
        except Exception as error:  # whatever a user's own model raises
            # What the others come to took as long, and is wanted all the same.
            report(f"{running[done]} could not be trained ({number} of {len(running)}): {brief(error)}")
            problem = problem or error
            continue
        report(f"trained {running[done]} ({number} of {len(running)})")
        yield running[done], state
    if problem is not None:
        raise problem


def _common_feed(data: Mapping[str, QueryData], builder: str) -> QueryData:
    """The feeds of all models of the builder whose questions have equally many classes as most have."""
    alike: dict[int, list[QueryData]] = defaultdict(list)
    for part in data.values():
        if part.query.model.builder == builder:
            alike[len(part.query.model.classes)].append(part)
    return common_feed(max(alike.values(), key=len))


def _fingerprint(data: QueryData) -> str:
    """Of the frames that an original learns from, and of their labels: a feed's name may stay while they change."""
    found = hashlib.sha256()
    for side in ("train", "validation"):
        split = data.splits[side]
        for image in split.images:
            found.update(f"{image.shape}".encode() + image.tobytes())
        found.update(split.labels.tobytes() + repr(split.boxes).encode())
    return found.hexdigest()


def _content_key(
    workload: Workload, query: Query, frames: Mapping[str, str], *, family: bool, **settings: object
) -> str:
    """What a trained original depends on: its frames and model; with a family, its relatives' too, and its place."""
    kin = [q for q in workload.queries if family and q.model.builder == query.model.builder]
    trained_on = [{"frames": frames[q.name], "model": q.model.model_dump(exclude={"weights"})} for q in (query, *kin)]
    place = workload.queries.index(query)
    content = {"trained_on": trained_on, "place": place, "family": family, "recipe": _RECIPE, **settings}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_cached(path: Path, key: str) -> bool:
    """Whether whole weights of that content lie there; what is damaged is trained again."""
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        # Opening them reads how long they must be.
        with safe_open(path, "pt"):
            return isinstance(note, dict) and note.get("content") == key
    except (OSError, ValueError, RecursionError, SafetensorError):
        return False


def _checked_bytes(query: Query, allow_factories: bool) -> int:
    """What a model to be trained will take on disk; ModelError where it cannot be built, or cannot take its frames."""
    model = build_model(query.model, allow_factories=allow_factories)
    check_takes_frames(model, query)
    return tensor_bytes(model.state_dict())


def _prepare_folder(folder: Path, needed_bytes: int) -> None:
    """Make the folder and write into it, before training takes its minutes; InputError says what is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not needed_bytes:
            return
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(
            f"{folder}: originals cannot be written there ({error.strerror}); name another folder, or correct this one"
        ) from error
    if free_bytes < needed_bytes:
        raise InputError(
            f"{folder}: the originals take {format_bytes(needed_bytes)}, {format_bytes(free_bytes)} are free there; "
            "free space, or name another folder"
        )


def _save(state: Mapping[str, torch.Tensor], path: Path, key: str) -> None:
    """Weights, then the note that vouches for them: never beside weights of other content."""
    files, note = Files.at(path.parent.absolute()), path.with_suffix(".json").name
    files.delete([note])
    files.write(path.name, encode(state))
    files.write(note, json.dumps({"content": key}).encode())


def _describe(data: QueryData, path: Path, cached: bool, allow_factories: bool) -> Original:
    model = build_model(data.query.model, allow_factories=allow_factories)
    fit_state(model, read_state(path), source=str(path))
    images = data.splits["gate"].images
    _, answers = run_model(model, data.task, images)
    score = score_on_labels(data, "gate", answers)
    accuracy = score.estimate if score else None
    return Original(data.query.name, data.query.model.builder, str(path), accuracy, len(images), cached)

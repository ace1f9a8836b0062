"""What originals and merged models answer to every frame of a camera, recorded once for many simulations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, ValidationError, model_validator

from gemel_ray.policy.splits import split_frames
from gemel_ray.spec.answers import Answer
from gemel_ray.spec.errors import FeedError, InputError
from gemel_ray.spec.release import Manifest, ReleasedQuery, Sha256
from gemel_ray.spec.strict import Strict, explain
from gemel_ray.spec.workload import Query, Workload
from gemel_ray.vision.checkpoints import fit_state
from gemel_ray.vision.feeds import open_feed
from gemel_ray.vision.feeds.labels import class_of
from gemel_ray.vision.models import build_model, training_device
from gemel_ray.vision.seen import end_to_end_accuracy
from gemel_ray.vision.tasks import Image, task_for
from gemel_ray.weights.maintenance import originals_of
from gemel_ray.weights.models import load_state, reader_of
from gemel_ray.weights.outputs import write_output
from gemel_ray.weights.store import Store

_BATCH = 32
Answers = Annotated[tuple[Answer, ...], Field(min_length=1)]


class Recorded(Strict):
    """One query's answers to the same frames, in order of time: its original's and its merged model's."""

    original: Answers
    merged: Answers

    @model_validator(mode="after")
    def _same_frames(self) -> Self:
        if len(self.original) != len(self.merged):
            raise ValueError(f"original has {len(self.original)} answers, merged {len(self.merged)}")
        return self

    def accuracy(self, standing: Sequence[int | None], *, merged: bool) -> float:
        """End-to-end accuracy of a stream in which the answer to frame `standing[i]` stood for frame i.

        A stream longer than the recording goes through it again; the reference is the original's own answer. Only
        the frames of the stream count.
        """
        given = self.merged if merged else self.original
        frames = len(given)
        reference = [self.original[place % frames] for place in range(len(standing))]
        return end_to_end_accuracy(reference, [None if at is None else given[at % frames] for at in standing])


class Recording(Strict):
    """All queries' answers, by name, of one release."""

    release: int
    # What answered, of whatever store: see `models_hash`.
    models: Sha256
    # Of each feed at most.
    most_frames: Annotated[int, Field(gt=0)]
    queries: Annotated[dict[str, Recorded], Field(min_length=1)]


def record_answers(
    workload: Workload, store: Store, manifest: Manifest, *, most_frames: int, allow_factories: bool = False
) -> Recording:
    """Run the originals, which are the release's first ancestor, and the release's models on frames that no training
    has seen (the gate's), `most_frames` of each feed at most. Raises FeedError for a feed without any such frame."""
    originals = originals_of(store, manifest)
    asked = {query.name: query for query in workload.queries}
    if unknown := manifest.queries.keys() - asked.keys():
        raise InputError(f"the workload asks nothing like query {min(unknown)!r} of release {manifest.release}")
    before, after = (_Models(store, release, allow_factories) for release in (originals, manifest))
    queries = {}
    for name in manifest.queries:
        frames = _unseen_frames(workload, asked[name], most_frames)
        queries[name] = Recorded(original=before.answers(name, frames), merged=after.answers(name, frames))
    models = models_hash(originals, manifest)
    return Recording(release=manifest.release, models=models, most_frames=most_frames, queries=queries)


def models_hash(originals: Manifest, manifest: Manifest) -> str:
    """A hash of all that decides what originals and merged models answer to a frame."""
    told = [[_model(release.queries[name]) for name in manifest.queries] for release in (originals, manifest)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _model(released: ReleasedQuery) -> object:
    query = released.query
    return [query.name, query.model.model_dump(mode="json"), query.score_threshold, released.weights, released.slices]


def write_recording(recording: Recording, path: Path) -> None:
    """As one JSON document. InputError where it cannot be written."""
    write_output(path, recording.model_dump_json().encode())


def read_recording(path: Path, store: Store, manifest: Manifest, *, most_frames: int | None = None) -> Recording:
    """InputError for a file that is no recording, one of another release or of other models, and one of another number
    of frames where one is asked for."""
    try:
        recording = Recording.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"--answers {path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(
            f"--answers {path}: is no recording of answers; remove it to record anew:\n{explain(error, Recording)}"
        ) from error
    if problem := _unsuitable(recording, store, manifest, most_frames):
        raise InputError(f"--answers {path}: holds answers of {problem}; give another file to record anew")
    return recording


def _unsuitable(recording: Recording, store: Store, manifest: Manifest, most_frames: int | None) -> str | None:
    if recording.release != manifest.release or recording.queries.keys() != manifest.queries.keys():
        return f"release {recording.release}, not of {manifest.release}"
    if recording.models != models_hash(originals_of(store, manifest), manifest):
        return f"other models, not of those of release {manifest.release} in {store.locate()}"
    if most_frames not in (None, recording.most_frames):
        return f"{recording.most_frames} frames of each feed, not of {most_frames}"
    return None


def accuracies(recording: Recording, standing: Mapping[str, Sequence[int | None]], *, merged: bool) -> dict[str, float]:
    """End-to-end accuracy of every query that had frames; see edge.metrics.standing_answers."""
    return {name: recording.queries[name].accuracy(stood, merged=merged) for name, stood in standing.items()}


def _unseen_frames(workload: Workload, query: Query, most: int) -> list[Image]:
    frames = list(open_feed(query.feed, workload.feeds[query.feed]).frames())
    labels = [class_of(frame, query.model.classes) for frame in frames]
    sides = split_frames(labels, [frame.split for frame in frames])
    unseen = [frame.image for frame, side in zip(frames, sides, strict=True) if side == "gate"][:most]
    if not unseen:
        raise FeedError(f"feed {query.feed!r} leaves no frames that training has not seen; give it more frames")
    return unseen


class _Models:
    """A release's models, one after the other; what they share is read once."""

    def __init__(self, store: Store, manifest: Manifest, allow_factories: bool) -> None:
        self._manifest = manifest
        self._allow_factories = allow_factories
        self._reader = reader_of(store, manifest.queries.values())

    @torch.inference_mode()
    def answers(self, name: str, frames: Sequence[Image]) -> tuple[Answer, ...]:
        """What one query's model answers to each frame."""
        released, device = self._manifest.queries[name], training_device()
        model = build_model(released.query.model, allow_factories=self._allow_factories)
        state = load_state(self._reader, released.weights, released.slices)
        fit_state(model, state, source=f"release {self._manifest.release}, {name}")
        model.to(device).eval()
        task = task_for(released.query.model, released.query.score_threshold)
        answers: list[Answer] = []
        for begin in range(0, len(frames), _BATCH):
            batch = list(frames[begin : begin + _BATCH])
            answers += task.answers(model(task.prepare(batch, device)), batch)
        return tuple(answers)

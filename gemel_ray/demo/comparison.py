"""The same frames at the same speed through two releases under one budget: goodput and end-to-end accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemel_ray.edge.traffic import Camera, spread
from gemel_ray.engine.status import EngineStatus
from gemel_ray.spec.answers import Answer, FrameAnswer
from gemel_ray.spec.workload import Query
from gemel_ray.training.data import QueryData, run_model
from gemel_ray.vision.checkpoints import load_weights
from gemel_ray.vision.models import build_model, training_device
from gemel_ray.vision.seen import end_to_end_accuracy

if TYPE_CHECKING:
    # jobs/bench_serving.py compares without Ray.
    from gemel_ray.serving.local import Service

_PATIENCE_S = 300


@dataclass(frozen=True, slots=True)
class Recording:
    """One camera's frames, none of them used in training, and the original's answer to each."""

    query: Query
    frames: list[np.ndarray]
    reference: list[Answer]


@dataclass(frozen=True, slots=True)
class Played:
    """What one release made of the recordings; fractions by query."""

    release: int
    goodput: dict[str, float]
    stale: dict[str, float]
    accuracy: dict[str, float]
    loaded_bytes: int
    peak_bytes: int


def record(data: Mapping[str, QueryData], *, seconds: float) -> dict[str, Recording]:
    """Frames of every feed's gate split, as many as fill that time, and the originals' answers to them."""
    return {name: _recording(part, seconds) for name, part in data.items()}


def _recording(data: QueryData, seconds: float) -> Recording:
    query = data.query
    frames = list(data.splits["gate"].images)[: round(seconds * query.fps)]
    model = build_model(query.model)
    load_weights(model, query.model)
    _, reference = run_model(model.to(training_device()), data.task, frames)
    return Recording(query, frames, reference)


def play(service: Service, node: str, recordings: Mapping[str, Recording]) -> Played:
    """Play all recordings at their cameras' speed inside the node's engine process."""
    engine = service.engines[node]
    frames = {name: recording.frames for name, recording in recordings.items()}
    cameras = spread([Camera(name, each.query.fps, each.query.slo_ms) for name, each in recordings.items()])
    found: list[FrameAnswer] = engine.replay.remote(frames, cameras).result(timeout_s=_PATIENCE_S)
    status: EngineStatus = engine.status.remote().result(timeout_s=_PATIENCE_S)
    return summarise(found, recordings, status)


def summarise(found: Sequence[FrameAnswer], recordings: Mapping[str, Recording], status: EngineStatus) -> Played:
    """Goodput, stale share and end-to-end accuracy of every query."""
    by_query = {name: [answer for answer in found if answer.query == name] for name in recordings}
    return Played(
        release=status.release,
        goodput={
            name: _share(answer.fresh and answer.latency_ms <= recordings[name].query.slo_ms for answer in answers)
            for name, answers in by_query.items()
        },
        stale={name: _share(not answer.fresh for answer in answers) for name, answers in by_query.items()},
        accuracy={
            name: end_to_end_accuracy(recordings[name].reference, _in_order(answers))
            for name, answers in by_query.items()
        },
        loaded_bytes=status.loaded_bytes,
        peak_bytes=status.peak_bytes,
    )


def _in_order(answers: Iterable[FrameAnswer]) -> list[Answer | None]:
    return [answer.answer for answer in sorted(answers, key=lambda answer: answer.frame)]


def _share(holds: Iterable[bool]) -> float:
    found = list(holds)
    return sum(found) / len(found)

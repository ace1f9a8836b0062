"""What joint retraining sees of one query: frames by split, and what the original answers to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from gemel_ray.policy.splits import Split, split_frames
from gemel_ray.spec.answers import Answer, Box, Classified, Detected
from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.feeds import FeedSpec
from gemel_ray.spec.trials import Objective
from gemel_ray.spec.workload import Query, Workload
from gemel_ray.training.dense import read_outputs
from gemel_ray.vision.feeds import open_feed
from gemel_ray.vision.feeds.labels import boxes_of, class_of, unknown_classes
from gemel_ray.vision.metrics import Score, compare, relative_accuracy
from gemel_ray.vision.models import task_of
from gemel_ray.vision.tasks import Image, Task, task_for

SPLITS: tuple[Split, ...] = ("train", "validation", "gate")
_FEWEST_FRAMES = 20
_BATCH = 64


@dataclass(frozen=True)
class SplitData:
    """Frames of one split in order of time, and what is known of them. Plain arrays: they cross processes uncopied."""

    images: tuple[Image, ...] | np.ndarray
    # Class index of each frame from the feed's labels, -1 where unknown.
    labels: np.ndarray
    # The objects of each frame; empty where the feed does not box them.
    boxes: tuple[tuple[Box, ...], ...] = ()
    # The original's logits (classification) and answers, once `with_teacher` has run.
    logits: np.ndarray | None = None
    answers: tuple[Answer, ...] = ()
    # What the original's head says of every place of each frame: dense detectors' training split alone.
    outputs: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class QueryData:
    """All frames of one query, by split."""

    query: Query
    splits: Mapping[Split, SplitData] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """The query's task."""
        return task_for(self.query.model, self.query.score_threshold)


def read_workload_data(workload: Workload, *, needs_labels: bool = False) -> dict[str, QueryData]:
    """Every query's frames, by name. Raises what `read_query_data` raises."""
    return {
        query.name: read_query_data(query, workload.feeds[query.feed], needs_labels=needs_labels)
        for query in workload.queries
    }


def read_query_data(query: Query, feed_spec: FeedSpec, *, needs_labels: bool = False) -> QueryData:
    """Read a query's whole feed and split it by time.

    Raises FeedError when the feed holds too few frames for a split, or lacks the labels that are needed.
    """
    feed = open_feed(query.feed, feed_spec)
    classes = query.model.classes
    if feed.vocabulary is not None and (unknown := unknown_classes(classes[1:], feed.vocabulary)):
        raise FeedError(
            f"query {query.name!r}: feed {query.feed!r} knows no class {unknown[0]!r}; "
            f"it labels {sorted(feed.vocabulary)}"
        )
    frames = list(feed.frames())
    labels = [class_of(frame, classes) for frame in frames]
    boxes = [boxes_of(frame, classes) for frame in frames]
    if needs_labels or query.judged_by == "labels":
        _check_labels(query, boxes if task_of(query.model) == "detection" else labels)
    task = task_for(query.model, query.score_threshold)
    sides = split_frames(labels, [frame.split for frame in frames])
    pixels = [task.pixels(frame.image) for frame in frames]
    splits = {side: _pick(side, sides, pixels, labels, boxes, classes) for side in SPLITS}
    _check_sizes(query, splits)
    return QueryData(query, splits)


def _pick(
    side: Split,
    sides: Sequence[Split | None],
    pixels: Sequence[Image],
    labels: Sequence[str | None],
    boxes: Sequence[tuple[Box, ...] | None],
    classes: tuple[str, ...],
) -> SplitData:
    places = [place for place, found in enumerate(sides) if found == side]
    boxed = [found for place in places if (found := boxes[place]) is not None]
    index = {name: number for number, name in enumerate(classes)}
    return SplitData(
        images=stacked([pixels[place] for place in places]),
        labels=np.array([index.get(labels[place] or "", -1) for place in places], dtype=np.int64),
        boxes=tuple(boxed) if len(boxed) == len(places) else (),
    )


def stacked(images: Sequence[Image]) -> tuple[Image, ...] | np.ndarray:
    """One array where all frames have one size (they then cross processes without a copy)."""
    return np.stack(images) if len({image.shape for image in images}) == 1 else tuple(images)


def _check_labels(query: Query, labels: Sequence[object]) -> None:
    if any(label is None for label in labels):
        wanted = "boxes" if task_of(query.model) == "detection" else "labels"
        why, otherwise = ("to train an original from", "give the model's 'weights'")
        if query.judged_by == "labels":
            why, otherwise = ("to be judged by", "say 'judged_by: agreement'")
        raise FeedError(
            f"query {query.name!r}: feed {query.feed!r} carries no {wanted} {why}; {otherwise}, or use a feed with "
            f"{wanted}"
        )


def _check_sizes(query: Query, splits: Mapping[Split, SplitData]) -> None:
    for side, data in splits.items():
        if len(data.images) < _FEWEST_FRAMES:
            raise FeedError(
                f"query {query.name!r}: feed {query.feed!r} leaves {len(data.images)} frames for {side}, at least "
                f"{_FEWEST_FRAMES} are needed; give the feed more frames"
            )


def check_labels_for(objective: Objective, data: Mapping[str, QueryData]) -> None:
    """Raise FeedError where retraining is to follow labels that a feed lacks for frames that are trained on."""
    for part in data.values() if objective != "distillation" else ():
        if _truth(part, "train") is None:
            raise FeedError(
                f"query {part.query.name!r}: feed {part.query.feed!r} does not label every frame, and --objective "
                f"{objective} follows labels; say --objective distillation, or use a feed with labels"
            )


def with_teacher(data: QueryData, model: nn.Module) -> QueryData:
    """The same data with the original's own answers to every frame: the labels that need no labelling."""
    splits = {side: _taught(split, data.task, model) for side, split in data.splits.items()}
    train = splits["train"]
    splits["train"] = replace(train, outputs=read_outputs(model, data.task, train.images))
    return QueryData(data.query, splits)


def _taught(split: SplitData, task: Task, model: nn.Module) -> SplitData:
    logits, answers = run_model(model, task, split.images)
    return SplitData(split.images, split.labels, split.boxes, logits, tuple(answers))


@torch.inference_mode()
def run_model(
    model: nn.Module, task: Task, images: Sequence[Image] | np.ndarray
) -> tuple[np.ndarray | None, list[Answer]]:
    """Logits N x classes (None for detectors) and answers of a model in evaluation mode, batch by batch."""
    model.eval()
    device = next(model.parameters()).device
    logits, answers = [], []
    for begin in range(0, len(images), _BATCH):
        batch = list(images[begin : begin + _BATCH])
        outputs = model(task.prepare(batch, device))
        answers += task.answers(outputs, batch)
        if isinstance(outputs, torch.Tensor):
            logits.append(outputs.float().cpu().numpy())
    return (np.concatenate(logits) if logits else None), answers


def score_on_labels(data: QueryData, side: Split, answers: Sequence[Answer]) -> Score | None:
    """Answers to all frames of a split against the feed's own labels: balanced accuracy, or F1 at IoU 0.5.

    None where the feed does not label every frame.
    """
    truth = _truth(data, side)
    return None if truth is None else compare(truth, answers)


def score_relative(data: QueryData, side: Split, answers: Sequence[Answer]) -> Score | None:
    """What share of the original's accuracy on the feed's labels these answers have; None where labels are missing."""
    truth = _truth(data, side)
    return None if truth is None else relative_accuracy(truth, data.splits[side].answers, answers)


def score(data: QueryData, side: Split, answers: Sequence[Answer]) -> Score:
    """What the query's target is held against."""
    relative = score_relative(data, side, answers) if data.query.judged_by == "labels" else None
    return relative or compare(data.splits[side].answers, answers)


def _truth(data: QueryData, side: Split) -> list[Answer] | None:
    split, classes = data.splits[side], data.query.model.classes
    if task_of(data.query.model) == "detection":
        truth: list[Answer] = [Detected(boxes) for boxes in split.boxes]
    else:
        truth = [Classified(classes[index], ()) for index in split.labels if index >= 0]
    return truth if len(truth) == len(split.images) else None

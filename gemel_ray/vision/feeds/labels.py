"""What a frame shows in the words of a query's classes."""

from __future__ import annotations

from collections.abc import Iterable

from gemel_ray.spec.answers import Box
from gemel_ray.vision.feeds.frames import FeedFrame

_ALIASES = {"vehicle": frozenset({"car", "truck", "bus", "motorcycle", "vehicle"})}
# An object is what a frame is about from this share of the frame on.
_LEAST_COVER_FRACTION = 0.03


def class_of(frame: FeedFrame, classes: tuple[str, ...]) -> str | None:
    """The class a frame shows: its label, or that of its largest object; the first class stands for none of them.

    None for frames without labels.
    """
    if frame.label is not None:
        return _name_for(frame.label, classes) or classes[0]
    boxes = boxes_of(frame, classes)
    if boxes is None:
        return None
    height, width = frame.image.shape[:2]
    covers = [(box.width * box.height / (width * height), box.label) for box in boxes]
    cover, label = max(covers, default=(0.0, classes[0]))
    return label if cover >= _LEAST_COVER_FRACTION else classes[0]


def boxes_of(frame: FeedFrame, classes: tuple[str, ...]) -> tuple[Box, ...] | None:
    """The frame's objects that are among the classes, under the query's own names; None without labels."""
    if frame.boxes is None:
        return None
    named = ((box, _name_for(box.label, classes)) for box in frame.boxes)
    return tuple(Box(name, box.score, box.x, box.y, box.width, box.height) for box, name in named if name)


def unknown_classes(classes: Iterable[str], vocabulary: frozenset[str]) -> tuple[str, ...]:
    """Classes that no label of the vocabulary can ever mean."""
    return tuple(name for name in classes if not (_ALIASES.get(name, frozenset()) | {name}) & vocabulary)


def _name_for(label: str, classes: tuple[str, ...]) -> str | None:
    if label in classes[1:]:
        return label
    return next((name for name in classes[1:] if label in _ALIASES.get(name, ())), None)

"""What a query answers for a frame."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """One object: its class, how sure, and where, in pixels of the frame as it was given (left, top, width, height)."""

    label: str
    score: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Classified:
    """The likeliest class, and a probability for each class in the order of the model's classes."""

    label: str
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Detected:
    """Objects above the query's score threshold, best first."""

    boxes: tuple[Box, ...]


Answer = Classified | Detected


@dataclass(frozen=True, slots=True)
class FrameAnswer:
    """The answer to one frame. Not `fresh`: the frame had no forward pass of its own, `answer` is the last one.

    `answer` is None when there is no earlier answer to repeat; `reason` says why the frame was not processed.
    """

    query: str
    frame: int
    answer: Answer | None
    fresh: bool
    reason: str | None
    latency_ms: float
    release: int

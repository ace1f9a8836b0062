"""The answers to camera frames, in JSON."""

from __future__ import annotations

from pydantic import BaseModel

from gemel_ray.serving.description import QueryCard
from gemel_ray.spec.answers import Answer, Box, Classified, FrameAnswer


class ClassifiedReply(BaseModel):
    """The likeliest class, and the probability of each by name."""

    label: str
    scores: dict[str, float]


class DetectedReply(BaseModel):
    """Objects, best first; places and sizes in pixels of the frame as it was sent."""

    boxes: tuple[Box, ...]


AnswerReply = ClassifiedReply | DetectedReply


class FrameReply(BaseModel):
    """Answer to one picture. Not `fresh`: `answer` is an earlier frame's, `reason` says why."""

    query: str
    frame: int
    fresh: bool
    reason: str | None
    latency_ms: float
    release: int
    answer: AnswerReply | None


class FramesReply(BaseModel):
    """Answer to several pictures in one request, in their order."""

    query: str
    release: int
    frames: tuple[FrameReply, ...]


def frame_reply(found: FrameAnswer, card: QueryCard) -> FrameReply:
    """A frame's answer with the scores under their classes' names."""
    return FrameReply(
        query=found.query,
        frame=found.frame,
        fresh=found.fresh,
        reason=found.reason,
        latency_ms=found.latency_ms,
        release=found.release,
        answer=None if found.answer is None else answer_reply(found.answer, card.classes),
    )


def answer_reply(answer: Answer, classes: tuple[str, ...]) -> AnswerReply:
    """One answer; `classes` in the model's order."""
    if isinstance(answer, Classified):
        return ClassifiedReply(label=answer.label, scores=dict(zip(classes, answer.scores, strict=True)))
    return DetectedReply(boxes=answer.boxes)

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
        answer=answer_reply(found.answer, card),
    )


def answer_reply(answer: Answer | None, card: QueryCard) -> AnswerReply | None:
    """One answer by the card's classes; None where there is none that fits the card."""
    if answer is None or not fits(answer, card):
        return None
    if isinstance(answer, Classified):
        return ClassifiedReply(label=answer.label, scores=dict(zip(card.classes, answer.scores, strict=True)))
    return DetectedReply(boxes=answer.boxes)


def fits(answer: Answer, card: QueryCard) -> bool:
    """Whether an answer is that of the card's model. While a release with other classes takes over, an answer may be
    older or newer than what is told of its query; it says nothing then."""
    if isinstance(answer, Classified):
        return (
            card.task == "classification" and len(answer.scores) == len(card.classes) and answer.label in card.classes
        )
    return card.task == "detection" and all(box.label in card.classes for box in answer.boxes)

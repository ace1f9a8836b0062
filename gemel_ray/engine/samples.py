"""A few recent frames of each query with their answers: what a new model is tried on before it answers cameras."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from gemel_ray.spec.answers import Answer, Classified
from gemel_ray.vision.metrics import compare
from gemel_ray.vision.tasks import Image

# One frame a second and query is kept, since copying each would take time, and neighbours resemble each other.
_EVERY_MS = 1000.0
_MOST_FRAMES = 8
# Of all queries together, on the host; each has an equal share of it.
_MOST_BYTES = 64 << 20
# Of a frame where no camera has sent any yet.
_ANY_SIZE = (64, 64)
# From so many frames on, new answers that agree with fewer than this share of the old ones are refused. Releases agree
# with the original on some 95 %, so two good ones differ on one frame in ten: this finds broken weights, not drift.
_ENOUGH_FRAMES = 4
_LEAST_AGREEMENT = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame and what was answered."""

    image: Image
    answer: Answer


class Samples:
    """The newest samples of each query. From any thread."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[Sample]] = {}
        self._taken_ms: dict[str, float] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def offer(self, query: str, image: Image, answer: Answer, now_ms: float) -> None:
        """Keep a copy of the frame if the last one was kept long enough ago, and if its query's share holds it."""
        if now_ms - self._taken_ms.get(query, -math.inf) < _EVERY_MS:
            return
        self._taken_ms[query] = now_ms
        with self._lock:
            self._sizes[query] = image.shape[:2]
            kept = self._kept.setdefault(query, deque())
            most_bytes = _MOST_BYTES // len(self._kept)
            if image.nbytes <= most_bytes:
                kept.append(Sample(image.copy(), answer))
            # All, since each one's share is smaller with every query that comes.
            for each in self._kept.values():
                while len(each) > _MOST_FRAMES or _bytes(each) > most_bytes:
                    each.popleft()

    def of(self, query: str) -> tuple[Sample, ...]:
        """What is kept of a query, oldest first; none where frames are too large."""
        with self._lock:
            return tuple(self._kept.get(query, ()))

    def grey(self, query: str) -> Image:
        """A frame that shows nothing, as large as the query's last one, so that a model takes as much memory for it."""
        return np.full((*self._sizes.get(query, _ANY_SIZE), 3), 128, np.uint8)

    def forget(self, query: str) -> None:
        """Drop a query's samples: its model is another one now, or it is not asked any more."""
        with self._lock:
            self._kept.pop(query, None)


def _bytes(samples: Sequence[Sample] | deque[Sample]) -> int:
    return sum(sample.image.nbytes for sample in samples)


def what_is_wrong(answers: Sequence[Answer], former: Sequence[Answer] | None) -> str | None:
    """Why a new model's answers are not to be trusted; None where nothing speaks against them.

    `former` are the old model's to the same frames, None where they are no measure.
    """
    if not all(map(_is_finite, answers)):
        return "its answers hold numbers that are not finite"
    if former is None or len(former) < _ENOUGH_FRAMES:
        return None
    agreement = compare(former, answers).estimate
    if agreement >= _LEAST_AGREEMENT:
        return None
    return f"its answers to {len(former)} recent frames agree with {agreement:.0%} of the former ones"


def _is_finite(answer: Answer) -> bool:
    if isinstance(answer, Classified):
        return all(map(math.isfinite, answer.scores))
    return all(math.isfinite(value) for box in answer.boxes for value in astuple(box)[1:])

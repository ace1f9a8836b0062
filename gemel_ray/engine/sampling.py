"""Frames of cameras set aside with their answers, seldom and at random times, for the drift monitor to compare."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass

from gemel_ray.spec.answers import Answer, FrameAnswer
from gemel_ray.vision.tasks import Image


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """A frame, what was answered to it, and by which release."""

    query: str
    image: Image
    answer: Answer
    release: int


class Sampler:
    """Takes about one frame of each query in `every_s` seconds, and holds at most `most_bytes` of pixels.

    Frames are chosen as they arrive, whatever will be answered. A chosen frame that gets no forward pass of its own is
    replaced by the next one. Where nobody takes the samples, the oldest go. From any thread.
    """

    def __init__(
        self,
        *,
        every_s: float,
        most_bytes: int,
        now_s: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.dropped = 0
        self._every_s = every_s
        self._most_bytes = most_bytes
        self._now_s = now_s
        self._rng = rng or random.Random()
        self._due_s: dict[str, float] = {}
        self._held: deque[SampledFrame] = deque()
        self._held_bytes = 0
        self._news = threading.Condition()

    def watch_over(self, queries: Collection[str]) -> None:
        """Sample these queries and no others. The first frame of each comes at a random time."""
        now_s = self._now_s()
        with self._news:
            first = {name: now_s + self._every_s * self._rng.random() for name in queries}
            self._due_s = {name: self._due_s.get(name, due_s) for name, due_s in first.items()}

    def offer(self, query: str, image: Image, answer: Future[FrameAnswer]) -> None:
        """A frame is being answered: keep a copy if one is due."""
        # Looked up without the lock first, since every frame comes by here.
        if self._now_s() < self._due_s.get(query, float("inf")):
            return
        with self._news:
            now_s = self._now_s()
            if now_s < self._due_s.get(query, float("inf")):
                return
            # Even times could fall in step with what the camera sees, such as traffic lights.
            self._due_s[query] = now_s + self._every_s * (0.5 + self._rng.random())
        kept = image.copy()
        answer.add_done_callback(lambda done: self._answered(query, kept, done))

    def take(self, timeout_s: float = 0.0) -> SampledFrame | None:
        """The oldest sample, or None when none comes in time."""
        with self._news:
            if not self._held and timeout_s > 0:
                self._news.wait(timeout_s)
            if not self._held:
                return None
            sample = self._held.popleft()
            self._held_bytes -= sample.image.nbytes
            return sample

    def _answered(self, query: str, image: Image, done: Future[FrameAnswer]) -> None:
        given = None if done.cancelled() or done.exception() is not None else done.result()
        with self._news:
            if given is None or not given.fresh or given.answer is None:
                if query in self._due_s:
                    self._due_s[query] = self._now_s()
                return
            self._held.append(SampledFrame(query, image, given.answer, given.release))
            self._held_bytes += image.nbytes
            while self._held_bytes > self._most_bytes:
                self._held_bytes -= self._held.popleft().image.nbytes
                self.dropped += 1
            self._news.notify()

"""Frames that wait for one query's turn: newest wins, late ones go, and some are never dropped."""

from __future__ import annotations

import math
from collections import deque

from gemel_ray.spec.actions import Frame
from gemel_ray.spec.plan import PlannedQuery


class PendingFrames:
    """The waiting frames of one query. Whatever a method gives back is no longer pending."""

    def __init__(self, query: PlannedQuery) -> None:
        self._query = query
        # In order of arrival.
        self._kept: deque[Frame] = deque()
        self._droppable: deque[Frame] = deque()
        # The last camera frame that came, and the time between the last two.
        self._last: Frame | None = None
        self._period_ms: float | None = None

    def follow(self, query: PlannedQuery) -> None:
        """Let another plan hold from now on, for the frames that wait as well."""
        self._query = query

    def __len__(self) -> int:
        return len(self._kept) + len(self._droppable)

    def add(self, frame: Frame) -> tuple[Frame, ...]:
        """Take a frame in; gives the frame that gives way: of droppable ones a turn's batch is all that can count."""
        if not frame.droppable:
            self._kept.append(frame)
            return ()
        self._note(frame)
        self._droppable.append(frame)
        return (self._droppable.popleft(),) if len(self._droppable) > self._query.batch_size else ()

    @property
    def first_deadline_ms(self) -> float:
        """The earliest deadline of all pending frames; infinite when there are none."""
        return min((frame.deadline_ms for frame in (*self._kept, *self._droppable)), default=math.inf)

    def will_have(self, start_ms: float) -> bool:
        """Whether a frame that may start then would be in time: one that is pending, or one that a steady camera sends
        by then. True as long as nothing is known of the camera."""
        answered_ms = start_ms + self._query.run_ms[1]
        if self._kept or any(frame.deadline_ms >= answered_ms for frame in self._droppable):
            return True
        if self._last is None or not self._period_ms:
            return True
        frames_until = (start_ms - self._last.arrived_ms) // self._period_ms
        return self._last.deadline_ms + frames_until * self._period_ms >= answered_ms

    def _note(self, frame: Frame) -> None:
        if self._last is not None:
            self._period_ms = frame.arrived_ms - self._last.arrived_ms
        self._last = frame

    def drop_late(self, earliest_start_ms: float) -> tuple[Frame, ...]:
        """Droppable frames whose deadline not even a batch of one, started then, would meet."""
        answered_ms = earliest_start_ms + self._query.run_ms[1]
        late = tuple(frame for frame in self._droppable if frame.deadline_ms < answered_ms)
        self._droppable = deque(frame for frame in self._droppable if frame.deadline_ms >= answered_ms)
        return late

    def choose(self, now_ms: float, within_ms: float = math.inf) -> tuple[Frame, ...]:
        """The batch to start now: as many frames as can be answered in time, those never dropped first.

        They stay pending until `take`. Empty only when nothing can be answered in time, or none `within_ms`.
        """
        for size in range(min(len(self), self._query.batch_size), 0, -1):
            if self._query.run_ms[size] > within_ms:
                continue
            kept = list(self._kept)[:size]
            in_time = [frame for frame in self._droppable if frame.deadline_ms >= now_ms + self._query.run_ms[size]]
            room = size - len(kept)
            batch = kept + in_time[len(in_time) - room :] if room <= len(in_time) else []
            if batch:
                return tuple(batch)
        return ()

    def take(self, batch: tuple[Frame, ...]) -> tuple[Frame, ...]:
        """Remove a chosen batch; gives the droppable frames older than one in it, which give way with it."""
        newest = max((frame.arrived_ms for frame in batch if frame.droppable), default=None)
        self._kept = deque(frame for frame in self._kept if frame not in batch)
        left = [frame for frame in self._droppable if frame not in batch]
        older = tuple(frame for frame in left if newest is not None and frame.arrived_ms <= newest)
        self._droppable = deque(frame for frame in left if frame not in older)
        return older

    def clear(self) -> tuple[Frame, ...]:
        """Give up on all frames."""
        given_up = (*self._kept, *self._droppable)
        self._kept.clear()
        self._droppable.clear()
        return given_up

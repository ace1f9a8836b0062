"""Frames that wait for their query's turn: newest wins, late ones go, and some stay until nobody waits for them."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice

from gemel_ray.edge.turnset import TurnSet
from gemel_ray.spec.actions import Frame
from gemel_ray.spec.plan import EdgePlan, PlannedQuery


class PendingFrames:
    """The waiting frames of one query. Whatever a method gives back is no longer pending."""

    def __init__(self, query: PlannedQuery) -> None:
        self._query = query
        # Both in order of arrival. Those never dropped may be thousands, by number, so that none is looked for; of
        # droppable ones there are no more than a batch.
        self._kept: OrderedDict[int, Frame] = OrderedDict()
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
            self._kept[frame.frame] = frame
            return ()
        self._note(frame)
        self._droppable.append(frame)
        return (self._droppable.popleft(),) if len(self._droppable) > self._query.batch_size else ()

    @property
    def next_workspace_bytes(self) -> int:
        """Of a batch of all that is pending, or of one frame."""
        return self._query.workspace_bytes[max(min(len(self), self._query.batch_size), 1)]

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
        late = tuple([frame for frame in self._droppable if frame.deadline_ms < answered_ms])
        if late:
            self._droppable = deque(frame for frame in self._droppable if frame.deadline_ms >= answered_ms)
        return late

    def choose(self, now_ms: float, within_ms: float = math.inf) -> tuple[Frame, ...]:
        """The batch to start now: as many frames as can be answered in time, those never dropped first.

        They stay pending until `take`. Empty only when nothing can be answered in time, or none `within_ms`.
        """
        for size in range(min(len(self), self._query.batch_size), 0, -1):
            if self._query.run_ms[size] > within_ms:
                continue
            kept = list(islice(self._kept.values(), size))
            in_time = [frame for frame in self._droppable if frame.deadline_ms >= now_ms + self._query.run_ms[size]]
            room = size - len(kept)
            batch = kept + in_time[len(in_time) - room :] if room <= len(in_time) else []
            if batch:
                return tuple(batch)
        return ()

    def take(self, batch: tuple[Frame, ...]) -> tuple[Frame, ...]:
        """Remove a chosen batch; gives the droppable frames older than one in it, which give way with it."""
        if len(batch) == len(self):
            self.clear()
            return ()
        newest = max((frame.arrived_ms for frame in batch if frame.droppable), default=None)
        for frame in batch:
            self._kept.pop(frame.frame, None)
        left = [frame for frame in self._droppable if frame not in batch]
        older = tuple(frame for frame in left if newest is not None and frame.arrived_ms <= newest)
        self._droppable = deque(frame for frame in left if frame not in older)
        return older

    def put_back(self, frames: Iterable[Frame]) -> None:
        """Frames that were taken and must not be dropped wait again, before all others."""
        for frame in reversed([frame for frame in frames if not frame.droppable]):
            self._kept[frame.frame] = frame
            self._kept.move_to_end(frame.frame, last=False)

    def withdraw(self, frame: Frame) -> tuple[Frame, ...]:
        """Give up on one frame, if it waits; gives it."""
        if frame.droppable and frame in self._droppable:
            self._droppable.remove(frame)
            return (frame,)
        return () if self._kept.pop(frame.frame, None) is None else (frame,)

    def clear(self) -> tuple[Frame, ...]:
        """Give up on all frames."""
        given_up = (*self._kept.values(), *self._droppable)
        self._kept.clear()
        self._droppable.clear()
        return given_up


class AllPending:
    """The waiting frames of all queries of a plan. Whatever a method gives back is no longer pending."""

    def __init__(self, plan: EdgePlan) -> None:
        self._of = {query.name: PendingFrames(query) for query in plan.queries}
        self._turn_of = {query.name: turn for turn, query in enumerate(plan.queries)}
        # The turns of queries with frames; kept, as it is asked for far more often than it changes.
        self.turns = TurnSet()

    def __getitem__(self, query: str) -> PendingFrames:
        """To be asked, not to be changed."""
        return self._of[query]

    def __contains__(self, query: str) -> bool:
        return query in self._of

    def __len__(self) -> int:
        return sum(len(frames) for frames in self._of.values())

    def __iter__(self) -> Iterator[str]:
        """The names of the queries."""
        return iter(self._of)

    def admit(self, queries: Iterable[PlannedQuery]) -> None:
        """Take frames of these as well, before a plan with them holds."""
        for query in queries:
            self._of.setdefault(query.name, PendingFrames(query))

    def follow(self, plan: EdgePlan) -> tuple[Frame, ...]:
        """Let another plan hold from now on; gives the frames of queries that it lacks."""
        self.admit(plan.queries)
        gone = [frame for name in self._of.keys() - plan.names for frame in self._of.pop(name).clear()]
        self._turn_of = {query.name: turn for turn, query in enumerate(plan.queries)}
        self.turns = TurnSet()
        for query in plan.queries:
            self._of[query.name].follow(query)
            self._note(query.name)
        return tuple(gone)

    def add(self, frame: Frame) -> tuple[Frame, ...]:
        """See PendingFrames.add."""
        gone = self._of[frame.query].add(frame)
        self._note(frame.query)
        return gone

    def put_back(self, query: str, frames: Iterable[Frame]) -> None:
        """See PendingFrames.put_back."""
        self._of[query].put_back(frames)
        self._note(query)

    def withdraw(self, frame: Frame) -> tuple[Frame, ...]:
        """See PendingFrames.withdraw. Frames of queries that are gone have had their verdict."""
        if frame.query not in self._of:
            return ()
        withdrawn = self._of[frame.query].withdraw(frame)
        self._note(frame.query)
        return withdrawn

    def drop_late(self, query: str, earliest_start_ms: float) -> tuple[Frame, ...]:
        """See PendingFrames.drop_late."""
        late = self._of[query].drop_late(earliest_start_ms)
        self._note(query)
        return late

    def take(self, query: str, batch: tuple[Frame, ...]) -> tuple[Frame, ...]:
        """See PendingFrames.take."""
        older = self._of[query].take(batch)
        self._note(query)
        return older

    def clear(self, query: str) -> tuple[Frame, ...]:
        """See PendingFrames.clear."""
        given_up = self._of[query].clear()
        self._note(query)
        return given_up

    def _note(self, query: str) -> None:
        if query in self._turn_of:
            self.turns.set(self._turn_of[query], len(self._of[query]) > 0)

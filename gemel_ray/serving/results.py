"""Results as they come: whoever listens to a query gets every answer that leaves this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator

from gemel_ray.serving.replies import FrameReply

# A listener that falls so many results behind misses the oldest of them.
MOST_WAITING = 64


class Subscription:
    """One listener's results that it has not read yet; the oldest give way to the newest."""

    def __init__(self) -> None:
        self.missed = 0
        self._waiting: deque[FrameReply] = deque()
        self._news = asyncio.Event()

    def put(self, reply: FrameReply) -> None:
        """Add a result; never waits."""
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft()
            self.missed += 1
        self._waiting.append(reply)
        self._news.set()

    async def take(self, timeout_s: float) -> FrameReply | None:
        """The oldest result, or None when none comes in time."""
        if not self._waiting:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout_s)
        return self._waiting.popleft() if self._waiting else None


class Results:
    """Who listens to which query. For one event loop."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[Subscription]] = defaultdict(set)

    @property
    def listeners(self) -> int:
        """How many listen, to any query."""
        return sum(map(len, self._listeners.values()))

    def publish(self, reply: FrameReply) -> None:
        """Hand one result to all who listen to its query."""
        for listener in self._listeners.get(reply.query, ()):
            listener.put(reply)

    def is_heard(self, query: str) -> bool:
        """Whether anybody listens to a query."""
        return bool(self._listeners.get(query))

    @contextlib.contextmanager
    def listen(self, query: str) -> Iterator[Subscription]:
        """Results of a query from now on, until the block ends."""
        listener = Subscription()
        self._listeners[query].add(listener)
        try:
            yield listener
        finally:
            self._listeners[query].discard(listener)
            if not self._listeners[query]:
                del self._listeners[query]


async def events(results: Results, query: str, *, heartbeat_s: float) -> AsyncIterator[str]:
    """Server-Sent Events: a `result` for each answer, `missed` where the listener was too slow, comments in between.

    The comments keep proxies from closing a quiet connection, and find out a listener that has gone.
    """
    with results.listen(query) as listener:
        yield ": listening\n\n"
        told = 0
        while True:
            reply = await listener.take(heartbeat_s)
            if listener.missed > told:
                yield f'event: missed\ndata: {{"results": {listener.missed - told}}}\n\n'
                told = listener.missed
            yield ": heartbeat\n\n" if reply is None else _event(reply)


def _event(reply: FrameReply) -> str:
    # JSON as pydantic writes it has no line breaks, which would end the field.
    return f"event: result\nid: {reply.frame}\ndata: {reply.model_dump_json()}\n\n"

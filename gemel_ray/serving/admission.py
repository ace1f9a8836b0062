"""Back-pressure: how many requests may be under way at once, and what is told to those beyond."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import HTTPException

# Seconds after which a caller may try again. Frames are answered or dropped within their SLO, and an engine that died
# is back in about three seconds: asking once a second costs little and finds it soon.
RETRY_AFTER = {"Retry-After": "1"}


class Slots:
    """A number of places; whoever finds none is told to come back (429), instead of waiting unseen."""

    def __init__(self, most: int, what: str) -> None:
        """`what` is counted, such as 'requests', in the reason that is given."""
        self.most = most
        self.taken = 0
        self.refused = 0
        self._what = what

    async def __call__(self) -> AsyncIterator[None]:
        """A dependency of routes: holds a place until the answer has been sent."""
        self.take()
        try:
            yield
        finally:
            self.free()

    def take(self) -> None:
        """Occupy a place. HTTPException 429 when there is none."""
        if self.taken >= self.most:
            self.refused += 1
            reason = f"{self.taken} {self._what} are under way already, the most there may be; try again shortly"
            raise HTTPException(429, reason, headers=RETRY_AFTER)
        self.taken += 1

    def free(self) -> None:
        """Give a place back."""
        self.taken -= 1

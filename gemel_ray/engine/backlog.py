"""How long a query's frames wait that are answered however late: what lets more of them in, or not."""

from __future__ import annotations

from dataclasses import dataclass

# Conditions change: other queries come, weights are swapped. What is older says little.
_WINDOW_MS = 1_000.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in an engine, for whoever decides whether it may take more."""

    # Pixels of all queries' frames, those included that nobody waits for any more.
    pixel_bytes: int
    # Of one query, those that are never dropped, and the time each of them takes of late; 0 as long as none is known.
    frames: int
    frame_ms: float

    def ms(self, more: int) -> float:
        """Time until so many more frames would be answered."""
        return (self.frames + more) * self.frame_ms


class Backlog:
    """One query's frames that are never dropped, and how fast they are answered while there are some.

    Measured, not predicted: it holds whatever else the device does meanwhile.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.frame_ms = 0.0
        self._since_ms = 0.0
        self._last_ms = 0.0
        self._answered = 0

    def come(self, now_ms: float) -> None:
        """One more waits."""
        if not self.frames:
            self._begin(now_ms)
        self.frames += 1

    def go(self, now_ms: float, *, is_answered: bool) -> None:
        """One waits no more. Those of one batch go at the same time."""
        self.frames -= 1
        if not is_answered:
            return
        if self._answered and now_ms > self._last_ms:
            # The batch before is counted whole by now.
            self.frame_ms = (self._last_ms - self._since_ms) / self._answered
            if self._last_ms - self._since_ms > _WINDOW_MS:
                self._begin(self._last_ms)
        self._last_ms = now_ms
        self._answered += 1

    def _begin(self, now_ms: float) -> None:
        self._since_ms = self._last_ms = now_ms
        self._answered = 0

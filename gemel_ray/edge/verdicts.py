"""What becomes of frames: the verdicts of a scheduler, and which queries keep losing frames."""

from __future__ import annotations

from collections.abc import Iterable

from gemel_ray.edge.turns import Turn
from gemel_ray.spec.actions import Answered, Dropped, Frame, Verdict

LATE, NEWER = "too late", "newer frame"
GONE = "failed: the query is no longer served here"
# So many frames lost in a row let a query that is ready go first.
_STARVING_FRAMES = 5


class Verdicts:
    """One verdict for every frame, until it is taken."""

    def __init__(self, queries: Iterable[str]) -> None:
        self._verdicts: list[Verdict] = []
        self._lost_in_a_row = dict.fromkeys(queries, 0)

    def take(self) -> list[Verdict]:
        """The verdicts since the last call."""
        taken, self._verdicts = self._verdicts, []
        return taken

    def know(self, queries: Iterable[str]) -> None:
        """These queries, and no others, have frames from now on."""
        self._lost_in_a_row = {name: self._lost_in_a_row.get(name, 0) for name in queries}

    def drop(self, frames: Iterable[Frame], now_ms: float, reason: str) -> None:
        """These frames get no answer of their own."""
        for frame in frames:
            # What fails does not go first: it would fail again.
            self._lost_in_a_row[frame.query] += reason in (LATE, NEWER)
            self._verdicts.append(Dropped(frame, now_ms, reason))

    def answer(self, turn: Turn, now_ms: float) -> None:
        """A turn's frames were answered."""
        self._verdicts += [Answered(frame, now_ms, turn.query.release) for frame in turn.frames]
        self._lost_in_a_row[turn.query.name] = 0

    def is_starving(self, query: str) -> bool:
        """Whether it has lost many frames in a row: they may come just after its turns, again and again."""
        return self._lost_in_a_row[query] >= _STARVING_FRAMES

"""What an engine tells of itself."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from gemel_ray.edge.verdicts import WITHDRAWN
from gemel_ray.engine.backlog import Backlog
from gemel_ray.spec.answers import Answer

# Latencies are told over so many of a query's last answered frames, so that memory stays flat.
LATENCY_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class QueryStatus:
    """One query since the engine started. Latencies are of the last answered frames; None before the first."""

    arrived: int
    answered: int
    # Frames that got the last answer again: dropped as late, replaced by a newer one, or failed.
    stale: int
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    last_answer: Answer | None
    # Why the last stale frame was stale.
    last_reason: str | None
    weights_bytes: int
    # The part of `weights_bytes` that another query uses too.
    shared_bytes: int
    # Of the stale ones, those whose inference or weights failed.
    failed: int = 0
    # Frames whose callers gave up before their turn; nobody got an answer for them.
    withdrawn: int = 0


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """What a device holds and has done. `resident_bytes` counts weights from the start of their load,
    `workspace_bytes` what running inferences were granted and what is set aside for stems, `peak_bytes` the most that
    all of it ever took together."""

    resident_bytes: int
    workspace_bytes: int
    peak_bytes: int
    loads: int
    loaded_bytes: int
    # Share of the last ten seconds that the compute lane was at work.
    busy_fraction: float


@dataclass(frozen=True, slots=True)
class EngineStatus(DeviceUsage):
    """An engine, what its device holds, and its queries."""

    release: int
    device: str
    budget_bytes: int
    # Of `resident_bytes`, those of weights that several queries use.
    shared_bytes: int
    # Why it takes no more frames, when that was nobody's wish.
    failure: str | None
    queries: dict[str, QueryStatus]
    # How often another plan was found to be better; see edge.reconsidering.
    replans: int = 0


@dataclass(slots=True)
class Tally:
    """Counts of one query's frames."""

    arrived: int = 0
    answered: int = 0
    stale: int = 0
    failed: int = 0
    withdrawn: int = 0
    last_answer: Answer | None = None
    # 0 where only one was ever served.
    last_release: int = 0
    last_reason: str | None = None
    backlog: Backlog = field(default_factory=Backlog)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_WINDOW))

    def count(self, answer: Answer | None, reason: str | None, latency_ms: float, release: int = 0) -> None:
        """Take in one frame's verdict: answered when there is no reason against it."""
        if reason is None:
            self.answered += 1
            self.last_answer, self.last_release = answer, release
            self.latencies_ms.append(latency_ms)
        elif reason == WITHDRAWN:
            self.withdrawn += 1
        else:
            self.stale += 1
            self.failed += reason.startswith("failed")
            self.last_reason = reason

    def forget_answer_of_another(self, release: int) -> None:
        """Repeat no answer any more of another release's model, which had other classes."""
        if self.last_release != release:
            self.last_answer, self.last_release = None, 0

    def status(self, *, weights_bytes: int, shared_bytes: int) -> QueryStatus:
        """The counts as a value."""
        window = sorted(self.latencies_ms)
        return QueryStatus(
            arrived=self.arrived,
            answered=self.answered,
            stale=self.stale,
            p50_latency_ms=statistics.median(window) if window else None,
            p95_latency_ms=percentile(window, 0.95),
            last_answer=self.last_answer,
            last_reason=self.last_reason,
            weights_bytes=weights_bytes,
            shared_bytes=shared_bytes,
            failed=self.failed,
            withdrawn=self.withdrawn,
        )


def percentile(ordered: list[float], fraction: float) -> float | None:
    """The smallest value that at least this fraction of the ascending values does not exceed (nearest rank)."""
    if not ordered:
        return None
    rank = -int(-len(ordered) * fraction // 1)
    return ordered[max(rank, 1) - 1]


@dataclass(slots=True)
class BusyTime:
    """How much of the recent past a lane was at work; intervals end in ascending order."""

    window_ms: float = 10_000
    intervals: deque[tuple[float, float]] = field(default_factory=deque)

    def worked(self, begin_ms: float, end_ms: float) -> None:
        """Count one piece of work."""
        self.intervals.append((begin_ms, end_ms))
        while self.intervals[0][1] < end_ms - self.window_ms:
            self.intervals.popleft()

    def fraction(self, now_ms: float) -> float:
        """The busy share of the window that ends now, or of all time when that is shorter."""
        since = max(0.0, now_ms - self.window_ms)
        return busy_ms(self.intervals.copy(), since) / (now_ms - since) if now_ms > since else 0.0


def busy_ms(intervals: Iterable[tuple[float, float]], since_ms: float) -> float:
    """Time of the intervals after `since_ms`."""
    return sum(max(0.0, end - max(begin, since_ms)) for begin, end in intervals)

"""What a box has seen of its cameras in the last seconds: when frames came, and whether they were answered in time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from gemel_ray.edge.choosing import TRIED_MS, Traffic
from gemel_ray.edge.metrics import goodput_fraction
from gemel_ray.spec.actions import Frame, Verdict

# With fewer frames, or in less time, there is nothing to be learnt.
_LEAST_FRAMES = 20
_LEAST_MS = TRIED_MS / 2


@dataclass(frozen=True, slots=True)
class RecentTraffic:
    """Frames that have had their verdict, numbered and timed from the first one on."""

    frames: Traffic
    # Mean over queries of frames answered in time / frames arrived: what simulations call mean goodput.
    goodput_fraction: float
    # The rates at which frames came, by query.
    fps: Mapping[str, float]


class Recent:
    """Remembers the last TRIED_MS milliseconds of verdicts."""

    def __init__(self) -> None:
        self._verdicts: deque[Verdict] = deque()

    def take(self, verdict: Verdict) -> None:
        """Verdicts in the order in which they were given."""
        self._verdicts.append(verdict)
        while self._verdicts[0].now_ms < verdict.now_ms - TRIED_MS:
            self._verdicts.popleft()

    def verdicts(self, now_ms: float) -> list[Verdict]:
        """Those of the last TRIED_MS milliseconds, in the same order: none where no frames come any more."""
        return [verdict for verdict in self._verdicts if verdict.now_ms >= now_ms - TRIED_MS]


def traffic_of(seen: Iterable[Verdict], queries: Collection[str]) -> RecentTraffic | None:
    """What came for these queries; None as long as too little has been seen."""
    verdicts = [verdict for verdict in seen if verdict.frame.query in queries]
    frames = sorted((verdict.frame for verdict in verdicts), key=lambda frame: (frame.arrived_ms, frame.frame))
    span_ms = frames[-1].arrived_ms - frames[0].arrived_ms if frames else 0.0
    if len(frames) < _LEAST_FRAMES or span_ms < _LEAST_MS:
        return None
    by_query = goodput_fraction(verdicts)
    counts = Counter(frame.query for frame in frames)
    return RecentTraffic(
        tuple(_from_the_first(frame, number, frames[0].arrived_ms) for number, frame in enumerate(frames)),
        sum(by_query.values()) / len(by_query),
        {query: count / span_ms * 1e3 for query, count in counts.items()},
    )


def _from_the_first(frame: Frame, number: int, first_ms: float) -> Frame:
    return replace(
        frame, frame=number, arrived_ms=frame.arrived_ms - first_ms, deadline_ms=frame.deadline_ms - first_ms
    )

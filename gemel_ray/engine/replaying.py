"""Playing recorded frames into a running release at the speed of the cameras."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from gemel_ray.engine.run import ReleaseRun
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.vision.tasks import Image


class Due(NamedTuple):
    """When one frame of a stream arrives, counted from the start."""

    at_ms: float
    query: str
    number: int


def arrivals(counts: Mapping[str, int], fps: Mapping[str, float]) -> list[Due]:
    """All arrivals in order; the k-th of n queries starts k/n of its own frame period late."""
    return sorted(_due(counts, fps))


def _due(counts: Mapping[str, int], fps: Mapping[str, float]) -> Iterator[Due]:
    for place, (query, count) in enumerate(counts.items()):
        period_ms = 1e3 / fps[query]
        for index in range(count):
            yield Due((place / len(counts) + index) * period_ms, query, index)


def replay(
    run: ReleaseRun, streams: Mapping[str, Sequence[Image]], fps: Mapping[str, float], slo_ms: Mapping[str, float]
) -> list[FrameAnswer]:
    """See Engine.replay. A frame counts as arrived when it was due, even if this thread woke a little later."""
    schedule = arrivals({query: len(stream) for query, stream in streams.items()}, fps)
    begun_ms = run.now_ms()
    futures = []
    for due in schedule:
        arrived_ms = begun_ms + due.at_ms
        time.sleep(max(0.0, arrived_ms - run.now_ms()) / 1e3)
        image = streams[due.query][due.number]
        futures.append(run.submit(due.query, image, arrived_ms=arrived_ms, slo_ms=slo_ms[due.query], droppable=True))
    return [replace(future.result(), frame=due.number) for due, future in zip(schedule, futures, strict=True)]

"""Playing recorded frames into a running release at the speed of the cameras."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from gemel_ray.edge.traffic import Camera
from gemel_ray.engine.run import ReleaseRun
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.vision.tasks import Image


class Due(NamedTuple):
    """When one frame of a stream arrives, counted from the start."""

    at_ms: float
    query: str
    number: int


def arrivals(cameras: Sequence[Camera], counts: Mapping[str, int]) -> list[Due]:
    """All arrivals in order, of so many frames of each query's camera."""
    return sorted(
        Due(camera.phase_ms + index * 1e3 / camera.fps, camera.query, index)
        for camera in cameras
        for index in range(counts[camera.query])
    )


def replay(run: ReleaseRun, streams: Mapping[str, Sequence[Image]], cameras: Sequence[Camera]) -> list[FrameAnswer]:
    """See Engine.replay. A frame counts as arrived when it was due, even if this thread woke a little later."""
    schedule = arrivals(cameras, {query: len(stream) for query, stream in streams.items()})
    slo_ms = {camera.query: camera.slo_ms for camera in cameras}
    begun_ms = run.now_ms()
    futures = []
    for due in schedule:
        arrived_ms = begun_ms + due.at_ms
        time.sleep(max(0.0, arrived_ms - run.now_ms()) / 1e3)
        image = streams[due.query][due.number]
        futures.append(run.submit(due.query, image, arrived_ms=arrived_ms, slo_ms=slo_ms[due.query], droppable=True))
    return [replace(future.result(), frame=due.number) for due, future in zip(schedule, futures, strict=True)]

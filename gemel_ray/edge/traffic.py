"""Frames as cameras send them: periodic arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gemel_ray.spec.actions import Frame

_GOLDEN_FRACTION = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Camera:
    """One query's stream of frames. The first frame comes at `phase_ms`."""

    query: str
    fps: float
    slo_ms: float
    phase_ms: float = 0.0
    droppable: bool = True


def periodic(cameras: Sequence[Camera], duration_ms: float) -> tuple[Frame, ...]:
    """All frames that arrive before `duration_ms`, in order of arrival, numbered through over all cameras."""
    arrivals = sorted(
        (arrived_ms, place) for place, camera in enumerate(cameras) for arrived_ms in _times_ms(camera, duration_ms)
    )
    return tuple(_frame(cameras[place], number, arrived_ms) for number, (arrived_ms, place) in enumerate(arrivals))


def before(end_ms: float, frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Those of the frames that arrive sooner than `end_ms`."""
    return tuple(frame for frame in frames if frame.arrived_ms < end_ms)


def spread(cameras: Sequence[Camera]) -> tuple[Camera, ...]:
    """The same cameras with their first frames spread evenly over one frame period, as unrelated cameras' are."""
    return tuple(
        Camera(camera.query, camera.fps, camera.slo_ms, 1000 / camera.fps * place / len(cameras), camera.droppable)
        for place, camera in enumerate(cameras)
    )


def scattered(cameras: Sequence[Camera], draw: int) -> tuple[Camera, ...]:
    """The same cameras with their first frames elsewhere in their frame periods, at other places for every draw.

    Multiples of the golden section's fraction, which fill a period evenly however many there are.
    """
    return tuple(
        replace(camera, phase_ms=1000 / camera.fps * ((place + 1) * (draw + 1) * _GOLDEN_FRACTION % 1))
        for place, camera in enumerate(cameras)
    )


def _times_ms(camera: Camera, duration_ms: float) -> list[float]:
    times_ms: list[float] = []
    while (arrived_ms := camera.phase_ms + len(times_ms) * 1000 / camera.fps) < duration_ms:
        times_ms.append(arrived_ms)
    return times_ms


def _frame(camera: Camera, number: int, arrived_ms: float) -> Frame:
    return Frame(camera.query, number, arrived_ms, arrived_ms + camera.slo_ms, camera.droppable)

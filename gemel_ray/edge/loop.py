"""The one loop that drives a device, real or simulated, by a scheduler."""

from __future__ import annotations

from collections.abc import Callable

from gemel_ray.edge.device import Device
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.spec.actions import Verdict
from gemel_ray.spec.errors import ServingError


def run(scheduler: Scheduler, device: Device, on_verdict: Callable[[Verdict], None]) -> None:
    """Until the device has no more events. `on_verdict` hears of every frame once, after the next actions started."""
    while (event := device.next_event()) is not None:
        for action in scheduler.handle(event):
            device.start(action)
        for verdict in scheduler.take_verdicts():
            on_verdict(verdict)
    if scheduler.pending:
        raise ServingError(f"the device has no more events, but {scheduler.pending} frames have no verdict")

"""A node simulated: a plan and frames in, goodput and what it took out. Pure."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gemel_ray.edge.loop import run
from gemel_ray.edge.metrics import busy_fraction, goodput_fraction, stale_fraction, swap_bytes
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.edge.traffic import Camera, spread
from gemel_ray.policy.sharing import Models
from gemel_ray.spec.actions import Frame
from gemel_ray.spec.plan import EdgePlan


@dataclass(frozen=True, slots=True)
class Simulation:
    """What one policy made of a node's cameras. Goodput and stale fractions are by query; see edge.metrics."""

    policy: str
    budget_bytes: int
    # Of all weight sets that the policy holds, each once.
    weights_bytes: int
    goodput_fraction: Mapping[str, float]
    stale_fraction: Mapping[str, float]
    swap_bytes: int
    busy_fraction: float
    peak_bytes: int
    # From the first arrival to the last event.
    span_ms: float

    @property
    def mean_goodput_fraction(self) -> float:
        """Over queries, each counted once; 1 for no frames."""
        return statistics.fmean(self.goodput_fraction.values()) if self.goodput_fraction else 1.0

    @property
    def worst_goodput_fraction(self) -> float:
        """Of the query that fares worst; 1 for no frames."""
        return min(self.goodput_fraction.values(), default=1.0)


def cameras_of(models: Models) -> tuple[Camera, ...]:
    """One camera for each query at its own rate and SLO, their first frames spread over a frame period."""
    return spread([Camera(name, model.fps, model.slo_ms) for name, model in models.items()])


def play(plan: EdgePlan, frames: Sequence[Frame]) -> Trace:
    """Serve the frames by a plan on a simulated device, and write down all that passes."""
    trace = Trace(SimulatedDevice(plan, frames))
    with _uncollected():
        run(Scheduler(plan), trace, trace.hear)
    return trace


@contextmanager
def _uncollected() -> Iterator[None]:
    """Events and verdicts hold no cycles; looking for some among millions of them takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def measure(policy: str, plan: EdgePlan, trace: Trace) -> Simulation:
    """The metrics of a trace."""
    first_ms = trace.arrivals[0].now_ms if trace.arrivals else 0.0
    span_ms = trace.now_ms() - first_ms
    return Simulation(
        policy=policy,
        budget_bytes=plan.budget_bytes,
        weights_bytes=sum(plan.weight_bytes.values()),
        goodput_fraction=goodput_fraction(trace.verdicts),
        stale_fraction=stale_fraction(trace.verdicts),
        swap_bytes=swap_bytes(trace.done),
        busy_fraction=busy_fraction(trace.done, span_ms),
        peak_bytes=trace.peak_bytes,
        span_ms=span_ms,
    )

"""Measuring models of new forms in a running engine: it takes a turn of its own among the queries.

The turn needs no weights and all the memory there is, so that the scheduler has evicted everything else by then, and
nothing is loaded or computed beside it: what is measured is what an idle device would say, and the budget holds.
Cameras wait meanwhile, about two seconds for each form, and are told so like any frame that comes too late.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gemel_ray.engine.profiling import Measured
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.run import ReleaseRun
from gemel_ray.engine.staging import Wait
from gemel_ray.policy.transition import trial_name, with_all_memory
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.release import Manifest, ReleasedQuery
from gemel_ray.vision.tasks import Image

_LOOK_EVERY_S = 0.002
# Of one form; the largest detectors on a slow processor take a fifth of it.
_TIMEOUT_S = 120.0


class Measurement:
    """Stands where the device expects a query's model, and measures when it is asked for answers."""

    weights: tuple[str, ...] = ()

    def __init__(self, measure: Callable[[], Measured]) -> None:
        self.found: Measured | None = None
        self._measure = measure

    def answers(self, images: Sequence[Image], residence: Residence, wait: Wait | None = None) -> list[None]:
        """Measure; there is nothing to say of the frames."""
        self.found = self._measure()
        return [None] * len(images)


def measure_beside(run: ReleaseRun, manifest: Manifest, measure: Callable[[], Measured]) -> Measured:
    """What `measure` says of a release's models, called in a turn of its own; the plan is then the one before.

    Raises ServingError where it fails or does not end, and when the engine is stopped meanwhile.
    """
    old, plan, asked = run.manifest, run.plan, next(iter(manifest.queries))
    name, measurement = trial_name(asked, manifest.release), Measurement(measure)
    run.device.take_in({(name, manifest.release): measurement})
    follow(run, with_all_memory(plan, name, manifest.release), {**old.queries, name: manifest.queries[asked]})
    try:
        reason = _waited_for(run, name, _TIMEOUT_S * len(manifest.queries))
    finally:
        follow(run, plan, old.queries)
        run.device.keep(old.release, old.queries)
    if measurement.found is None:
        raise ServingError(f"release {manifest.release}: models of a new form cannot be measured here ({reason})")
    return measurement.found


def _waited_for(run: ReleaseRun, name: str, timeout_s: float) -> str | None:
    """Why there is no measurement; None where there is."""
    frame = np.zeros((8, 8, 3), np.uint8)
    asked = run.submit(name, frame, arrived_ms=run.now_ms(), slo_ms=timeout_s * 1e3, droppable=False)
    try:
        return asked.result(timeout=timeout_s).reason
    except TimeoutError:
        return f"it takes more than {timeout_s:g} s"


def follow(run: ReleaseRun, plan: EdgePlan, queries: Mapping[str, ReleasedQuery]) -> None:
    """Have the run follow a plan, and wait until it does. ServingError for a run that has ended."""
    run.replan(plan, queries)
    pause = threading.Event()
    while not run.follows(plan):
        pause.wait(_LOOK_EVERY_S)

"""From time to time, another plan for a release that loses frames: see edge.reconsidering."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gemel_ray.edge.reconsidering import Reconsidered, loses_frames
from gemel_ray.engine import measuring
from gemel_ray.engine.kinds import KindCosts
from gemel_ray.engine.reconsidering import Question, answered_elsewhere
from gemel_ray.engine.run import ReleaseRun
from gemel_ray.spec.errors import GemelError
from gemel_ray.spec.plan import EdgePlan

log = logging.getLogger(__name__)


def reconsider(run: ReleaseRun, costs: KindCosts, policy: str, changing: threading.Lock) -> Reconsidered | None:
    """See Engine.reconsider. Whoever changes what is being served holds the lock."""
    manifest, plan, recent = run.manifest, run.plan, run.recent()
    if recent is None or not loses_frames(recent):
        return None
    found = answered_elsewhere(Question(manifest, costs.profile(manifest), policy, plan, recent))
    if found.plan is not None and not _replan(run, plan, found.plan, changing):
        return None
    log.info("release %d: %s", manifest.release, found)
    return found


def _replan(run: ReleaseRun, former: EdgePlan, plan: EdgePlan, changing: threading.Lock) -> bool:
    """Whether the run goes over to a plan: not where it follows another one than the former by now."""
    if not changing.acquire(blocking=False):
        return False
    try:
        if run.plan is not former:
            return False
        measuring.follow(run, plan, run.manifest.queries)
        run.settle(run.manifest, plan)
        run.replans += 1
        return True
    finally:
        changing.release()


class Replanner:
    """Calls `reconsider` every so many seconds until it is stopped. What is wrong is logged: nothing depends on it."""

    def __init__(self, reconsider: Callable[[], object], every_s: float) -> None:
        self._reconsider = reconsider
        self._every_s = every_s
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="gemel-replan", daemon=True).start()

    def stop(self) -> None:
        """Ask no more. What is being looked for is not waited for."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._reconsider()
            except GemelError as error:
                if not self._stopped.is_set():
                    log.warning("the plan is kept: %s", error)

"""A new release in a running engine: tried beside the old one, switched query by query between two inferences.

A query's new model is tried first, under a name of its own, on recent frames of the query; only then does it answer
cameras. Every plan on the way keeps to the one budget, and the scheduler moves the weights as it always does, so that
no inference ever sees weights of two releases.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from gemel_ray.engine.measuring import follow
from gemel_ray.engine.models import Skeleton
from gemel_ray.engine.run import ReleaseRun
from gemel_ray.engine.samples import Sample, what_is_wrong
from gemel_ray.policy.transition import changed_queries, compared_queries, mixed_plan, trial_name
from gemel_ray.spec.answers import Answer, FrameAnswer
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.release import Manifest, ReleasedQuery

log = logging.getLogger(__name__)

# For a trial's frames: they wait behind all cameras' turns, but not for ever.
_TRIAL_TIMEOUT_S = 60.0


class RefusedReleaseError(ServingError):
    """A new release failed a check; the engine goes on with the one before."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One release taking another's place in a run, whose device has its blobs. `built` are the models that change."""

    run: ReleaseRun
    manifest: Manifest
    plan: EdgePlan
    built: Mapping[str, Skeleton]

    def do(self) -> tuple[str, ...]:
        """Switch every query; gives those whose model is another one now.

        Raises RefusedReleaseError for a model that fails its trial, ServingError when the engine is stopped meanwhile.
        The old release answers all its queries again by then.
        """
        old, old_plan = self.run.manifest, self.run.plan
        changed = changed_queries(old, self.manifest)
        self._introduce(old)
        try:
            self._switch(old, old_plan, changed)
        except Exception:
            self._go_back(old, old_plan)
            raise
        self.run.settle(self.manifest, self.plan)
        for gone in old.queries.keys() - self.manifest.queries.keys():
            self.run.samples.forget(gone)
        self.run.device.keep(self.manifest.release, self.manifest.queries)
        return changed

    def _introduce(self, old: Manifest) -> None:
        """Make the models known to the device: those that change also under the name they have on trial."""
        device, number = self.run.device, self.manifest.release
        same = {name: device.skeleton(name, old.release) for name in self.manifest.queries if name not in self.built}
        device.take_in({(name, number): found for name, found in {**same, **self.built}.items()})
        device.take_in({(trial_name(name, number), number): found for name, found in self.built.items()})

    def _switch(self, old: Manifest, old_plan: EdgePlan, changed: Collection[str]) -> None:
        compared, switched = compared_queries(old, self.manifest), set[str]()
        for name in changed:
            tried = mixed_plan(old_plan, self.plan, switched, name)
            follow(self.run, tried, self._asked(old, switched, name))
            self._try(name, is_compared=name in compared)
            switched.add(name)
            follow(self.run, mixed_plan(old_plan, self.plan, switched), self._asked(old, switched))
            self.run.samples.forget(name)
        follow(self.run, self.plan, self.manifest.queries)

    def _asked(self, old: Manifest, switched: Collection[str], tried: str | None = None) -> Mapping[str, ReleasedQuery]:
        """Whom a mixed plan answers."""
        new = {name: self.manifest.queries[name] for name in switched}
        trial = {} if tried is None else {trial_name(tried, self.manifest.release): self.manifest.queries[tried]}
        return {**old.queries, **new, **trial}

    def _try(self, name: str, *, is_compared: bool) -> None:
        samples = self.run.samples.of(name)
        answers = self._answers(name, samples)
        former = [sample.answer for sample in samples] if is_compared and samples else None
        if (wrong := what_is_wrong(answers, former)) is not None:
            raise RefusedReleaseError(f"release {self.manifest.release}, query {name!r}: {wrong}; the old one stays")

    def _answers(self, name: str, samples: Collection[Sample]) -> list[Answer]:
        """What the new model says of recent frames, or of a grey one where none is kept."""
        trial, until = trial_name(name, self.manifest.release), time.monotonic() + _TRIAL_TIMEOUT_S
        frames = [sample.image for sample in samples] or [self.run.samples.grey(name)]
        futures = [
            self.run.submit(trial, frame, arrived_ms=self.run.now_ms(), slo_ms=_TRIAL_TIMEOUT_S * 1e3, droppable=False)
            for frame in frames
        ]
        answers = []
        for future in futures:
            answer, reason = _given(future, until)
            if answer is None:
                raise RefusedReleaseError(
                    f"release {self.manifest.release}, query {name!r}: its model gives no answer ({reason}); "
                    "the old one stays"
                )
            answers.append(answer)
        return answers

    def _go_back(self, old: Manifest, old_plan: EdgePlan) -> None:
        try:
            follow(self.run, old_plan, old.queries)
            self.run.device.keep(old.release, old.queries)
        except ServingError as error:
            log.warning("release %d cannot be gone back to: %s", old.release, error)


def _given(future: Future[FrameAnswer], until_s: float) -> tuple[Answer | None, str | None]:
    """A trial's answer, or why there is none."""
    try:
        given = future.result(timeout=max(until_s - time.monotonic(), 0.0))
    except TimeoutError:
        return None, f"none within {_TRIAL_TIMEOUT_S:g} s"
    return (given.answer, None) if given.fresh else (None, given.reason)

"""The drift monitor: originals answer sampled frames, merged answers are held against theirs. Neither Ray nor HTTP."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gemel_ray.engine.originals import Originals
from gemel_ray.engine.sampling import SampledFrame
from gemel_ray.policy.drift import Compared, DriftSettings, DriftState, evidence_fraction, observe
from gemel_ray.serving.drift_memory import DriftMemory
from gemel_ray.serving.drift_options import DriftOptions
from gemel_ray.serving.drift_reports import Drift, DriftReply
from gemel_ray.spec.answers import Answer, Classified, Detected
from gemel_ray.spec.errors import GemelError, InputError, StoreError
from gemel_ray.spec.release import Manifest, ReleasedQuery
from gemel_ray.vision.feeds.keeping import KeptFrames
from gemel_ray.vision.metrics import match_counts

log = logging.getLogger(__name__)

OnDrift = Callable[[Drift], None]

# How long the monitor waits for a frame before it looks whether it is to end.
_WAIT_S = 0.5
# It may be reverting a query, which waits for a download.
_JOIN_S = 5.0
# It gives way to the engine beside it.
_NICENESS = 10


class Samples(Protocol):
    """Where sampled frames come from: an engine's own sampler, or many engines'."""

    def watch_over(self, queries: Collection[str]) -> None:
        """Sample these queries and no others."""
        ...

    def take(self, timeout_s: float) -> SampledFrame | None:
        """The oldest sample, or None when none comes in time."""
        ...


@dataclass(slots=True)
class _Watched:
    """One query whose model is a merged one; `model` is a name for its weights."""

    released: ReleasedQuery
    model: str
    settings: DriftSettings
    # Releases that serve this very model.
    releases: set[int]
    state: DriftState


class DriftWatch:
    """Compares what samplers set aside. `serve` from any thread, `step` from one."""

    def __init__(self, options: DriftOptions, samples: Samples, folder: str | Path, on_drift: OnDrift) -> None:
        """Frames are kept below `folder`. `on_drift` is told on the monitor's own thread, and again and again as long
        as what has drifted is served: it may return with what is wanted undone, and never raises."""
        self._options = options
        self._samples = samples
        self._folder = Path(folder)
        self._on_drift = on_drift
        self._memory = DriftMemory(self._folder)
        self._originals: Originals | None = None
        self._watched: Mapping[str, _Watched] = {}
        self._kept: dict[str, KeptFrames | None] = {}
        self._served: Mapping[str, ReleasedQuery] = {}
        self._release = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gemel-drift", daemon=True)
        # Why the last sample was not compared; None when it was.
        self.problem: str | None = None

    def serve(self, manifest: Manifest, originals: Originals | None) -> None:
        """Watch this release from now on. Queries whose weights stay keep what is known of them; those that run their
        originals have nothing to drift from, and only their frames are kept. Without `originals` nothing is watched."""
        with self._lock:
            self._memory.forget_others(manifest.queries)
            self._originals = originals
            self._served, self._release = manifest.queries, manifest.release
            root = originals.root.queries if originals else {}
            self._watched = {
                name: self._watch(released, manifest.release)
                for name, released in manifest.queries.items()
                if name in root and root[name].weights != released.weights
            }
        self._samples.watch_over(tuple(root.keys() & manifest.queries.keys()))

    def start(self) -> None:
        """Compare on a thread of its own until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def step(self, timeout_s: float = 0.0) -> bool:
        """Compare one sample; False when none came in time. Raises GemelError for an original that cannot be had."""
        sample = self._samples.take(timeout_s)
        if sample is None:
            return False
        with self._lock:
            watched, originals = self._watched.get(sample.query), self._originals
        if watched is None or originals is None:
            self._keep(sample, sample.answer)
        elif sample.release in watched.releases:
            (reference,) = originals.answers(sample.query, [sample.image])
            self._keep(sample, reference)
            self._observe(sample, watched, reference)
        return True

    def tell(self) -> None:
        """Tell of every query that is served although it has drifted, no matter when that was found."""
        with self._lock:
            found = [
                Drift(name, _reply(watched), self._release, watched.model)
                for name, watched in self._watched.items()
                if watched.state.verdict == "drifted"
            ]
        for drift in found:
            self._on_drift(drift)

    def report(self) -> dict[str, DriftReply]:
        """What is known of every watched query."""
        with self._lock:
            return {name: _reply(watched) for name, watched in self._watched.items()}

    def kept(self, query: str) -> KeptFrames | None:
        """A query's frames on disk; None where it has none, or they cannot be kept."""
        return self._kept.get(query)

    def _watch(self, released: ReleasedQuery, release: int) -> _Watched:
        former = self._watched.get(released.query.name)
        if former is not None and former.released.weights == released.weights:
            former.releases.add(release)
            return former
        settings = self._options.settings(released.agreement_target)
        state = self._memory.recall(released, settings)
        return _Watched(released, _name_of(released.weights), settings, {release}, state)

    def _observe(self, sample: SampledFrame, watched: _Watched, reference: Answer) -> None:
        before = watched.state
        with self._lock:
            watched.state = observe(before, compared(reference, sample.answer), watched.settings)
        if watched.state.verdict == "drifted" and before.verdict == "holding":
            log.warning("query %s has drifted: %s", sample.query, _reply(watched))
        if watched.state.blocks > before.blocks:
            with self._lock:
                self._memory.keep(watched.released, watched.settings, watched.state)

    def _keep(self, sample: SampledFrame, reference: Answer) -> None:
        try:
            if sample.query not in self._kept:
                self._kept[sample.query] = self._keeper(sample.query)
            kept = self._kept[sample.query]
            if kept is not None:
                kept.keep(sample.image, reference, int(time.time() * 1000))
        except (OSError, StoreError) as error:
            log.warning("a frame of %s is not kept: %s", sample.query, error)

    def _keeper(self, query: str) -> KeptFrames | None:
        with self._lock:
            released, share = self._served.get(query), max(len(self._served), 1)
        if released is None:
            return None
        try:
            return KeptFrames(
                self._folder / query / "frames", released.query.model, most_bytes=self._options.keep // share
            )
        except InputError as error:
            log.warning("query %s: %s", query, error)
            return None

    def _run(self) -> None:
        # Niceness is a thread's own on Linux, and torch's helpers of this thread take it over.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._ended.is_set():
            self._compare_one()
            self.tell()

    def _compare_one(self) -> None:
        try:
            if self.step(_WAIT_S):
                self.problem = None
        except GemelError as error:
            self.problem = str(error)
            log.warning("a sampled frame was not compared: %s", error)
        except Exception as error:
            # Watching must go on: the next frame may be another matter.
            self.problem = f"{type(error).__name__}: {error}"
            log.exception("a sampled frame was not compared")


def compared(reference: Answer, given: Answer) -> Compared:
    """One frame for the drift test: by class, or all boxes together, as the release's own measure counts them."""
    if isinstance(reference, Classified):
        assert isinstance(given, Classified), "classification is compared with classification"
        right = given.label == reference.label
        return Compared(reference.label, float(right), float(not right))
    assert isinstance(given, Detected), "detection is compared with detection"
    matched, surplus, missed = match_counts(reference.boxes, given.boxes)
    return Compared("boxes", 2.0 * matched, float(surplus + missed), len(reference.boxes))


def _name_of(weights: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(weights.items())).encode()).hexdigest()[:16]


def _reply(watched: _Watched) -> DriftReply:
    state = watched.state
    return DriftReply(
        verdict=state.verdict,
        agreement=state.agreement,
        floor=watched.settings.floor,
        samples=state.frames,
        evidence_fraction=evidence_fraction(state, watched.settings),
    )

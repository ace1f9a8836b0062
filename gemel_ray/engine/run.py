"""One release being served: frames in, answers out, until it is stopped."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial

from gemel_ray.edge.loop import run
from gemel_ray.edge.recent import Recent, RecentTraffic, traffic_of
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.turns import check_plan
from gemel_ray.engine import pauses
from gemel_ray.engine.backlog import Backlog, Waiting
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.frames import check_frame, check_proportions
from gemel_ray.engine.samples import Samples
from gemel_ray.engine.singly import Unanswered
from gemel_ray.engine.status import EngineStatus, Tally
from gemel_ray.spec.actions import Answered, Frame, Verdict
from gemel_ray.spec.answers import Answer, FrameAnswer
from gemel_ray.spec.errors import FrameError, ServingError, nearest
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.release import Manifest, ReleasedQuery
from gemel_ray.vision.tasks import Image

log = logging.getLogger(__name__)

# Pixels of frames that wait for their verdict. Droppable frames never come near it: a newer one replaces an older.
MOST_PENDING_BYTES = 1 << 30
STOPPED = "the engine was stopped; start it again"


@dataclass(frozen=True, slots=True)
class _Pending:
    frame: Frame
    future: Future[FrameAnswer]
    pixel_bytes: int


class ReleaseRun:
    """Serves a release on one device, and the next one after it; thread-safe.

    Ends by `stop`, or with the failure that ended its loop. What a new release asks of it is in engine.rollout.
    """

    def __init__(self, manifest: Manifest, plan: EdgePlan, device: TorchDevice) -> None:
        self.manifest = manifest
        self.plan = plan
        self._shared = shared_blobs(manifest)
        self.device = self._device = device
        self.samples = Samples()
        self._scheduler = Scheduler(plan)
        self._recent = Recent()
        # How often another plan has taken over while the release stayed.
        self.replans = 0
        # What is asked for now, and counts of all that ever was.
        self._queries: Mapping[str, ReleasedQuery] = manifest.queries
        self._tallies = {name: Tally() for name in manifest.queries}
        self._pending: dict[int, _Pending] = {}
        self._pending_bytes = 0
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # Why no more frames are taken; None while they are.
        self._closed: str | None = None
        self._failure: str | None = None
        pauses.begin()
        self._thread = threading.Thread(target=self._serve, name="gemel-loop", daemon=True)
        self._thread.start()

    def now_ms(self) -> float:
        """Time on the device's clock."""
        return self._device.now_ms()

    def submit(
        self, query: str, image: Image, *, arrived_ms: float, slo_ms: float | None, droppable: bool
    ) -> Future[FrameAnswer]:
        """See Engine.submit."""
        image = check_frame(image)
        # A deadline that is no number is never met nor missed, and such a frame would wait for ever.
        if slo_ms is not None and not 0 < slo_ms < math.inf:
            raise FrameError(f"slo_ms is {slo_ms}; give a finite number of milliseconds above 0, or none")
        future: Future[FrameAnswer] = Future()
        with self._lock:
            self._check_open(image.nbytes)
            if query not in self._queries:
                raise ServingError(f"no query {query!r} is served here; {nearest(query, self._queries)}")
            check_proportions(image, self._queries[query].query.model)
            if slo_ms is None:
                slo_ms = self._queries[query].query.slo_ms
            frame = Frame(query, next(self._numbers), arrived_ms, arrived_ms + slo_ms, droppable)
            self._pending[frame.frame] = _Pending(frame, future, image.nbytes)
            self._pending_bytes += image.nbytes
            self._device.frames[frame.frame] = image
            self._tallies[query].arrived += 1
            if not droppable:
                self._tallies[query].backlog.come(self.now_ms())
            self._device.arrive(frame)
        # Where whoever asked gives up, the frame is not computed for nobody.
        future.add_done_callback(partial(self._given_up, frame))
        return future

    def replan(self, plan: EdgePlan, queries: Mapping[str, ReleasedQuery]) -> None:
        """Follow another plan from the next inference on, and answer these queries, which are those of the plan.

        Raises OverBudgetError for a plan that does not fit, ServingError for a run that has ended.
        """
        check_plan(plan)
        with self._lock:
            self._check_open(0)
            self._queries = queries
            for name in queries.keys() - self._tallies.keys():
                self._tallies[name] = Tally()
            self._device.replan(plan)

    def follows(self, plan: EdgePlan) -> bool:
        """Whether that plan is in force. ServingError for a run that has ended."""
        with self._lock:
            self._check_open(0)
        return self._scheduler.plan is plan

    def settle(self, manifest: Manifest, plan: EdgePlan) -> None:
        """Take note that a release is being served now, in which a plan followed before has ended."""
        with self._lock:
            for name in reclassified(self.manifest, manifest):
                self._tallies[name].forget_answer_of_another(manifest.release)
            self.manifest, self.plan = manifest, plan
            self._recent = Recent()
            self._shared = shared_blobs(manifest)
            self._tallies = {name: self._tallies[name] for name in manifest.queries} | {
                pending.frame.query: self._tallies[pending.frame.query] for pending in self._pending.values()
            }

    def stop(self) -> None:
        """Take no more frames, let what is pending end, resolve every future, free the device."""
        with self._lock:
            if self._closed is None:
                self._closed = STOPPED
                self._device.stop()
        self._thread.join()

    def recent(self) -> RecentTraffic | None:
        """What has come of the last seconds with this plan; None as long as that is too little."""
        with self._lock:
            seen, queries = self._recent.verdicts(self.now_ms()), self.manifest.queries
        # Takes milliseconds, for which no frame is to wait.
        return traffic_of(seen, queries)

    def status(self) -> EngineStatus:
        """The release and its queries right now."""
        device = self._device
        with self._lock:
            queries = {name: self._tallies[name].status(**self._bytes_of(name)) for name in self.manifest.queries}
        return EngineStatus(
            release=self.manifest.release,
            device=str(device.residence.device),
            budget_bytes=device.budget_bytes,
            shared_bytes=device.resident_bytes_of(self._shared),
            failure=self._failure,
            queries=queries,
            replans=self.replans,
            **asdict(device.usage()),
        )

    def _bytes_of(self, name: str) -> dict[str, int]:
        weigh = {weight: self.manifest.blobs[weight].tensor_bytes for weight in self.manifest.blobs_of(name)}
        return {
            "weights_bytes": sum(weigh.values()),
            "shared_bytes": sum(size for weight, size in weigh.items() if weight in self._shared),
        }

    def waiting(self, query: str) -> Waiting:
        """See Engine.waiting."""
        with self._lock:
            backlog = self._tallies[query].backlog if query in self._tallies else Backlog()
            return Waiting(self._pending_bytes, backlog.frames, backlog.frame_ms)

    def _given_up(self, frame: Frame, done: Future[FrameAnswer]) -> None:
        """Called on the thread of whoever cancels, or on the loop's."""
        if done.cancelled():
            self._device.withdraw(frame)

    def _check_open(self, more_bytes: int) -> None:
        if self._closed is not None:
            raise ServingError(self._closed)
        if self._pending and self._pending_bytes + more_bytes > MOST_PENDING_BYTES:
            raise ServingError(
                f"{len(self._pending)} frames ({self._pending_bytes} bytes of pixels) wait already; send more when "
                "answers have come, or let frames be dropped"
            )

    def _serve(self) -> None:
        try:
            run(self._scheduler, self._device, self._on_verdict)
        except Exception as error:
            log.exception("the serving loop of release %d ended", self.manifest.release)
            self._failure = f"the serving loop ended with {type(error).__name__}: {error}; restart the engine"
        finally:
            self._finish(self._failure or STOPPED)
            pauses.end()

    def _on_verdict(self, verdict: Verdict) -> None:
        """Called on the loop's thread for every frame."""
        with self._lock:
            self._recent.take(verdict)
        frame = verdict.frame
        answer = self._device.answers.pop(frame.frame, None)
        if isinstance(answer, Unanswered):
            self._resolve(frame, None, f"failed: {answer.reason}", verdict.now_ms)
        elif isinstance(verdict, Answered):
            image = self._device.frames[frame.frame]
            self._resolve(frame, answer, None, verdict.now_ms, verdict.release)
            if answer is not None and frame.query in self.manifest.queries:
                self.samples.offer(frame.query, image, answer, verdict.now_ms)
        else:
            self._resolve(frame, None, verdict.reason, verdict.now_ms)

    def _resolve(
        self, frame: Frame, answer: Answer | None, reason: str | None, now_ms: float, release: int = 0
    ) -> None:
        latency_ms = now_ms - frame.arrived_ms
        with self._lock:
            pending = self._pending.pop(frame.frame)
            self._pending_bytes -= pending.pixel_bytes
            del self._device.frames[frame.frame]
            tally = self._tallies[frame.query]
            tally.count(answer, reason, latency_ms, release)
            if not frame.droppable:
                tally.backlog.go(now_ms, is_answered=reason is None)
            given = FrameAnswer(
                frame.query,
                frame.frame,
                tally.last_answer,
                reason is None,
                reason,
                latency_ms,
                tally.last_release or self.manifest.release,
            )
        # Outside the lock: whoever waits may submit the next frame from a callback.
        if pending.future.set_running_or_notify_cancel():
            pending.future.set_result(given)

    def _finish(self, ended: str) -> None:
        with self._lock:
            self._closed = ended
            left = list(self._pending.values())
        for pending in left:
            self._resolve(pending.frame, None, f"not processed: {ended}", self._device.now_ms())
        self._device.close()


def reclassified(old: Manifest, new: Manifest) -> list[str]:
    """Queries of both releases whose model has other classes in the new one."""
    models = {name: found.query.model for name, found in old.queries.items()}
    return [
        name
        for name, found in new.queries.items()
        if name in models and found.query.model.classes != models[name].classes
    ]


def shared_blobs(manifest: Manifest) -> frozenset[str]:
    """The blobs that several queries use."""
    users = Counter(sha for name in manifest.queries for sha in manifest.blobs_of(name))
    return frozenset(sha for sha, count in users.items() if count > 1)

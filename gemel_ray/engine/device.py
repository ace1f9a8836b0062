"""The real device: CPU or CUDA behind the scheduler's two lanes."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol

from gemel_ray.edge.ledger import Ledger
from gemel_ray.engine.blobs import BlobFile
from gemel_ray.engine.devices import use_threads
from gemel_ray.engine.lanes import Lane
from gemel_ray.engine.models import Skeleton
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.singly import Given, answered
from gemel_ray.engine.staging import Wait
from gemel_ray.engine.status import BusyTime, DeviceUsage
from gemel_ray.spec.actions import (
    Action,
    Arrived,
    Done,
    Event,
    Evict,
    Frame,
    Infer,
    Load,
    Replanned,
    Stopped,
    Withdrawn,
)
from gemel_ray.spec.answers import Answer
from gemel_ray.spec.errors import ServingError, StoreError
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.vision.tasks import Image

log = logging.getLogger(__name__)


class Model(Protocol):
    """What answers an inference: a Skeleton, or whatever stands in for one."""

    @property
    def weights(self) -> tuple[str, ...]:
        """What must be resident, or on its way."""
        ...

    def answers(
        self, images: Sequence[Image], residence: Residence, wait: Wait | None = None
    ) -> Sequence[Answer | None]:
        """See Skeleton."""
        ...


class TorchDevice:
    """Implements edge.device.Device. Frames arrive from any thread; `start` and `next_event` belong to one loop."""

    def __init__(
        self,
        skeletons: Mapping[str, Skeleton],
        blobs: Mapping[str, BlobFile],
        residence: Residence,
        ledger: Ledger,
        *,
        refetch: Callable[[str], BlobFile] | None = None,
        threads: int | None = None,
    ) -> None:
        """`refetch` gets a blob's file anew when it does not load; `threads` bounds those of an inference on a CPU."""
        self.residence = residence
        # Pixels by frame id, from whoever brings frames, who also takes them away once a frame has its verdict.
        self.frames: dict[int, Image] = {}
        # Answers by frame id, to be taken by whoever hears the verdict.
        self.answers: dict[int, Given] = {}
        # By query and release, as Infer names them; replaced as a whole, since lanes read it meanwhile.
        self._skeletons: dict[tuple[str, int], Model] = {(name, 0): found for name, found in skeletons.items()}
        self._blobs = dict(blobs)
        self._refetch = refetch
        self._lock = threading.Lock()
        self._ledger = ledger
        # The ledger counts weights from the start of their load; these have arrived and may be computed with.
        self._arrived: set[str] = set()
        # Reserved, and not there yet.
        self._coming: set[str] = set()
        self._landed = threading.Condition(self._lock)
        self._in_use: Counter[str] = Counter()
        self._loads = 0
        self._loaded_bytes = 0
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._in_flight = 0
        self._stopping = False
        self._busy = BusyTime()
        self._started = time.perf_counter()
        self._copying = Lane("gemel-copy")
        self._computing = Lane("gemel-compute", first=partial(use_threads, threads))

    @property
    def budget_bytes(self) -> int:
        """See Device."""
        return self._ledger.budget_bytes

    def now_ms(self) -> float:
        """Milliseconds since this device was made."""
        return (time.perf_counter() - self._started) * 1e3

    def arrive(self, frame: Frame) -> None:
        """Tell the scheduler of a frame; its pixels lie in `frames` already. From any thread."""
        self._events.put(Arrived(frame, self.now_ms()))

    def withdraw(self, frame: Frame) -> None:
        """Tell the scheduler that nobody waits for a frame any more. From any thread."""
        self._events.put(Withdrawn(frame, self.now_ms()))

    def replan(self, plan: EdgePlan) -> None:
        """Let the scheduler follow another plan, for whose models `take_in` was called. From any thread."""
        self._events.put(Replanned(plan, self.now_ms()))

    def take_blobs(self, blobs: Mapping[str, BlobFile], refetch: Callable[[str], BlobFile]) -> None:
        """Know the files of further weights, and where to get them anew. From any thread."""
        # Of what is known, what was made of its file is kept: tensors, copies in host memory.
        self._blobs = {**blobs, **self._blobs}
        self._refetch = refetch

    def take_in(self, skeletons: Mapping[tuple[str, int], Model]) -> None:
        """Know further models, by query and release. From any thread."""
        self._skeletons = {**self._skeletons, **skeletons}

    def keep(self, release: int, queries: Collection[str]) -> None:
        """Forget all models but these, once no plan names the others any more. From any thread."""
        kept, before = {(name, release) for name in queries}, self._skeletons
        self._skeletons = {key: found for key, found in before.items() if key in kept}
        for found in set(before.values()) - set(self._skeletons.values()):
            if isinstance(found, Skeleton):
                # The collector may never look at a model (see engine.pauses), and a batch is kept of its stem.
                found.stemmed = None
        needed = {weight for found in self._skeletons.values() for weight in found.weights}
        self._blobs = {weight: blob for weight, blob in self._blobs.items() if weight in needed}
        # What the others' weights held may be more than is ever needed again.
        self.residence.arena.trim()

    @property
    def blobs(self) -> Mapping[str, BlobFile]:
        """The files of all weights that are known."""
        return self._blobs

    def skeleton(self, query: str, release: int) -> Skeleton:
        """One of the models that are known."""
        found = self._skeletons[query, release]
        assert isinstance(found, Skeleton), "asked for by the name of a query"
        return found

    def stop(self) -> None:
        """No more frames will arrive; `next_event` ends once what is in flight has ended. From any thread."""
        self._events.put(Stopped(self.now_ms()))

    def close(self) -> None:
        """End both lanes and free all weights, after the loop has ended."""
        self._copying.close()
        self._computing.close()
        with self._lock:
            for weight in list(self._arrived):
                self._free(weight)
            self.residence.arena.trim()

    def start(self, action: Action) -> None:
        """See Device."""
        if isinstance(action, Load):
            self._start_load(action)
        elif isinstance(action, Infer):
            self._start_infer(action)
        else:
            self._evict(action)

    def next_event(self) -> Event | None:
        """See Device. Returns None once stopped and nothing is in flight."""
        if self._stopping and self._in_flight == 0 and self._events.empty():
            return None
        event = self._events.get()
        if isinstance(event, Done):
            self._in_flight -= 1
        self._stopping = self._stopping or isinstance(event, Stopped)
        return event

    def usage(self) -> DeviceUsage:
        """What the device holds and has done so far. From any thread."""
        with self._lock:
            return DeviceUsage(
                resident_bytes=self._ledger.resident_bytes,
                workspace_bytes=self._ledger.workspace_bytes,
                peak_bytes=self._ledger.peak_bytes,
                loads=self._loads,
                loaded_bytes=self._loaded_bytes,
                busy_fraction=self._busy.fraction(self.now_ms()),
            )

    def resident_bytes_of(self, weights: Collection[str]) -> int:
        """Bytes of those of the weights that are resident. From any thread."""
        with self._lock:
            return sum(map(self._ledger.bytes_of, weights))

    def _start_load(self, load: Load) -> None:
        with self._lock:
            self._ledger.reserve(load.weight, load.bytes)
            self._coming.add(load.weight)
        self._in_flight += 1
        self._copying.put(partial(self._do, load, partial(self._load, load, self._blobs[load.weight])))

    def _start_infer(self, infer: Infer) -> None:
        weights = self._skeletons[infer.query, infer.release].weights
        with self._lock:
            if missing := [weight for weight in weights if weight not in self._arrived | self._coming]:
                raise ValueError(f"query {infer.query} cannot run: {missing} are neither there nor on their way")
            self._ledger.reserve_workspace(infer.workspace_bytes)
            self._limit_arena()
            self._in_use.update(weights)
        self._in_flight += 1
        self._computing.put(partial(self._do, infer, partial(self._infer, infer)))

    def _evict(self, evict: Evict) -> None:
        with self._lock:
            if evict.weight not in self._arrived:
                raise ValueError(f"weight {evict.weight} has not fully arrived; evict only what is resident")
            if self._in_use[evict.weight]:
                raise ValueError(f"weight {evict.weight} is in use; evict it once its inference has ended")
            self._free(evict.weight)

    def _limit_arena(self) -> None:
        """What is granted to inferences, the arena must not keep at hand for weights to come."""
        self.residence.arena.limit(self.budget_bytes - self._ledger.workspace_bytes)

    def _free(self, weight: str) -> None:
        self._arrived.remove(weight)
        self.residence.evict(weight)
        self._ledger.release(weight)

    def _do(self, action: Load | Infer, work: Callable[[], None]) -> None:
        """Do an action's work on its lane and tell how it went; a failure is an event, never the end of the lane."""
        begun_ms, failure = self.now_ms(), None
        try:
            work()
        except Exception as error:
            log.warning("%s failed", action, exc_info=True)
            failure = f"{type(error).__name__}: {error}"
        now_ms = self.now_ms()
        self._events.put(Done(action, now_ms, now_ms - begun_ms, failure))

    def _load(self, load: Load, blob: BlobFile) -> None:
        try:
            self._copy_in(load, blob)
        except BaseException:
            with self._landed:
                self._ledger.release(load.weight)
                self._land(load)
            raise
        with self._landed:
            self._arrived.add(load.weight)
            self._loads += 1
            self._loaded_bytes += load.bytes
            self._land(load)

    def _land(self, load: Load) -> None:
        """A load has ended, well or not: tell an inference that waits for it."""
        self._coming.remove(load.weight)
        self._landed.notify_all()

    def _wait(self, weight: str) -> None:
        """On the compute lane: until a weight has fully arrived. ServingError when its load fails."""
        with self._landed:
            self._landed.wait_for(lambda: weight not in self._coming)
            if weight not in self._arrived:
                raise ServingError(f"weights {weight} did not arrive")

    def _copy_in(self, load: Load, blob: BlobFile) -> None:
        try:
            self.residence.load(load.weight, blob, load.bytes)
        except StoreError as error:
            if self._refetch is None:
                raise
            log.warning("weight %s does not load and is fetched anew: %s", load.weight, error)
            self._blobs[load.weight] = self._refetch(load.weight)
            self.residence.load(load.weight, self._blobs[load.weight], load.bytes)

    def _infer(self, infer: Infer) -> None:
        skeleton, begun_ms = self._skeletons[infer.query, infer.release], self.now_ms()
        try:
            images = [self.frames[frame] for frame in infer.frames]
            answers = answered(lambda some: skeleton.answers(some, self.residence, self._wait), images)
            self.answers.update(zip(infer.frames, answers, strict=True))
        finally:
            with self._lock:
                self._in_use.subtract(skeleton.weights)
                self._ledger.release_workspace(infer.workspace_bytes)
                self._limit_arena()
                self._busy.worked(begun_ms, self.now_ms())

"""The engine: one device, one memory budget, many queries. A plain class for whatever serves, demonstrates or tests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

from gemel_ray.edge.choosing import choose_plan, expected_traffic
from gemel_ray.edge.ledger import Ledger
from gemel_ray.edge.reconsidering import Reconsidered
from gemel_ray.edge.simulation import cameras_of
from gemel_ray.edge.traffic import Camera
from gemel_ray.engine import measuring, profiling, replanning, replaying
from gemel_ray.engine.backlog import Waiting
from gemel_ray.engine.blobs import Fetch, open_blob, open_blobs
from gemel_ray.engine.copying import ReloadFrom
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.devices import device_name, find_device, use_threads
from gemel_ray.engine.kinds import KindCosts
from gemel_ray.engine.models import Skeleton, build_skeletons
from gemel_ray.engine.replanning import Replanner
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.rollout import Rollout
from gemel_ray.engine.run import ReleaseRun
from gemel_ray.engine.sampling import Sampler
from gemel_ray.engine.status import EngineStatus
from gemel_ray.engine.stems import StemSharing, most_kept_bytes
from gemel_ray.policy.released import on_weight_sets, released_plans
from gemel_ray.policy.sharing import models_of
from gemel_ray.policy.transition import changed_queries, restricted
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import OverBudgetError, ServingError, StoreError
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.profile import DeviceProfile, Way
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import format_bytes
from gemel_ray.vision.tasks import Image

log = logging.getLogger(__name__)


class Engine:
    """Answers frames with a release's models in at most `budget_bytes` of weights and workspace."""

    def __init__(
        self,
        *,
        budget_bytes: int,
        device: str = "auto",
        allow_factories: bool = False,
        threads: int | None = None,
        reload_from: ReloadFrom = "memory",
        policy: str = "ours_released",
        ways: Sequence[Way] = (),
        replan_every_s: float | None = None,
    ) -> None:
        """`device` is 'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'; `threads` bounds a CPU inference.

        `reload_from` says where evicted weights come back from, see engine.copying. `policy` is one of
        policy.baselines; all of them run on the weight sets of the release. `ways` of computing are tried when a
        profile is measured here, see engine.ways; a profile that is given says itself. `reconsider` is called every
        `replan_every_s` seconds unless that is None. Raises InputError for a device or a policy that is not there.
        """
        self.budget_bytes = budget_bytes
        self.device = find_device(device)
        self._allow_factories = allow_factories
        self._threads = threads
        self._ways = ways
        self._reload_from = reload_from
        on_weight_sets(policy)
        self._policy = policy
        self.costs = KindCosts(ways)
        # Of the budget, set aside for stems that several queries share.
        self.kept_bytes = 0
        self._stems = StemSharing()
        # Is offered every frame that is submitted; None where nobody watches for drift.
        self.sampler: Sampler | None = None
        self._run: ReleaseRun | None = None
        self._replan_every_s = replan_every_s
        self._replanner: Replanner | None = None
        self._lock = threading.Lock()
        self._rolling = threading.Lock()

    def start(self, manifest: Manifest, fetch: Fetch, profile: DeviceProfile | None = None) -> None:
        """Fetch the release's blobs, build its models, plan, take frames. Measures a quick profile when given none.

        `fetch` gives a blob's verified file on local disk; it is asked again for one that does not load. Raises
        OverBudgetError when a query does not fit by itself, StoreError for blobs that cannot be had, ModelError for
        models that cannot be built from them, ServingError when a release is being served already.
        """
        with self._lock:
            if self._run is not None:
                raise ServingError(f"release {self._run.manifest.release} is being served; stop the engine first")
            self._run = self._started(manifest, fetch, profile)
            if self._replan_every_s is not None:
                self._replanner = Replanner(self.reconsider, self._replan_every_s)
        log.info("serving release %d: %d queries on %s", manifest.release, len(manifest.queries), self.device)

    def measure(self, manifest: Manifest, fetch: Fetch) -> None:
        """Profile a query of each kind of model that is new here. While nothing is served: it needs the device."""
        if unknown := self.costs.unknown(manifest):
            some = restricted(manifest, unknown)
            self.costs.add(some, self._measuring(some, fetch, self.budget_bytes)())

    def measure_beside(self, manifest: Manifest, fetch: Fetch) -> None:
        """`measure` while another release is served, in a turn of its own: see engine.measuring.

        Raises StoreError for blobs that cannot be had, OverBudgetError for a query that does not fit, ModelError for
        models that cannot be built, ServingError for those that cannot be measured, and during a rollout.
        """
        with self._changing() as run:
            self._learn(run, manifest, fetch)

    def roll(self, manifest: Manifest, fetch: Fetch) -> tuple[str, ...]:
        """Serve another release instead, without a pause: see engine.rollout. Gives the queries that have changed.

        Raises StoreError for blobs that cannot be had, OverBudgetError for a query that does not fit, ModelError for
        models that cannot be built, ServingError for models of new forms that cannot be measured, for models that
        fail their trial, and while another release is being rolled out. The old one is served on after any of these.
        """
        with self._changing() as run:
            self._learn(run, manifest, fetch)
            changed = self._prepared(run, manifest, fetch).do()
            self._share_stems(run, manifest)
        log.info("serving release %d: %d queries have changed", manifest.release, len(changed))
        return changed

    def reconsider(self) -> Reconsidered | None:
        """Follow another plan from now on if it would have answered clearly more of the last seconds' frames.

        None where there is nothing to win, or a release is being rolled out. Looks for it in a process of its own.
        Raises ServingError where that fails, and when nothing is being served.
        """
        return replanning.reconsider(self._running(), self.costs, self._policy, self._rolling)

    def submit(
        self, query: str, image: Image, *, slo_ms: float | None = None, droppable: bool = True
    ) -> Future[FrameAnswer]:
        """Ask a query about one frame: uint8, height x width x 3, RGB, not to change until the answer is there.

        A frame that is not processed gets the last answer, marked stale, with the reason. A frame that is not
        `droppable` is processed however late. Cancelling the future withdraws the frame. The SLO is the query's own
        unless given. From any thread. Raises FrameError for an array that is no such frame and an SLO that is no time,
        ServingError for an unknown query or a stopped engine.
        """
        run = self._running()
        future = run.submit(query, image, arrived_ms=run.now_ms(), slo_ms=slo_ms, droppable=droppable)
        if self.sampler is not None:
            self.sampler.offer(query, image, future)
        return future

    def waiting(self, query: str) -> Waiting:
        """What waits for its verdict, and how fast a query's frames get theirs. ServingError when nothing is served."""
        return self._running().waiting(query)

    def replay(self, streams: Mapping[str, Sequence[Image]], cameras: Sequence[Camera]) -> list[FrameAnswer]:
        """Play recorded frames (by query) at the speed of their cameras; every frame's answer, in order of arrival.

        `frame` of an answer is the index in its stream.
        """
        return replaying.replay(self._running(), streams, cameras)

    @property
    def device_name(self) -> str:
        """What `costs` hold for: the device, and the threads that it computes with."""
        return device_name(self.device, self._threads)

    @property
    def plan(self) -> EdgePlan:
        """What the scheduler follows. ServingError when nothing is being served."""
        return self._running().plan

    @property
    def residence(self) -> Residence:
        """Which weights are on the device. ServingError when nothing is being served."""
        return self._running().device.residence

    def status(self) -> EngineStatus:
        """The release and its queries right now. ServingError when nothing is being served."""
        return self._running().status()

    def stop(self) -> None:
        """Take no more frames, resolve every future, free all weights. Does nothing when stopped."""
        with self._lock:
            if self._replanner is not None:
                self._replanner.stop()
                self._replanner = None
            if self._run is not None:
                self._run.stop()
                self._run = None

    @contextmanager
    def _changing(self) -> Iterator[ReleaseRun]:
        """One at a time changes what is being served."""
        # A change of plans takes no longer than an inference.
        if not self._rolling.acquire(timeout=1.0):
            raise ServingError("another release is being rolled out; wait until it is served")
        try:
            yield self._running()
        finally:
            self._rolling.release()

    def _learn(self, run: ReleaseRun, manifest: Manifest, fetch: Fetch) -> None:
        if unknown := self.costs.unknown(manifest):
            some = restricted(manifest, unknown)
            check_fits(some, self.budget_bytes)
            measure = self._measuring(some, fetch, run.plan.budget_bytes)
            self.costs.add(some, measuring.measure_beside(run, some, measure))

    def _measuring(self, manifest: Manifest, fetch: Fetch, budget_bytes: int) -> Callable[[], profiling.Measured]:
        """What profiles a release's models, which are built by then, as they will be computed, on whatever thread."""
        blobs = open_blobs(manifest, fetch)
        skeletons = build_skeletons(manifest, blobs, self.device, allow_factories=self._allow_factories)
        residence = Residence(self.device, self._reload_from, budget_bytes=budget_bytes)

        def measure() -> profiling.Measured:
            use_threads(self._threads)
            return profiling.profile_skeletons(
                manifest, skeletons, blobs, residence, budget_bytes=budget_bytes, ways=self._ways
            )

        return measure

    def _running(self) -> ReleaseRun:
        run = self._run
        if run is None:
            raise ServingError("the engine is stopped; start it with a release")
        return run

    def _started(self, manifest: Manifest, fetch: Fetch, profile: DeviceProfile | None) -> ReleaseRun:
        check_fits(manifest, self.budget_bytes)
        use_threads(self._threads)
        blobs = open_blobs(manifest, fetch)
        skeletons = build_skeletons(manifest, blobs, self.device, allow_factories=self._allow_factories)
        if profile is None:
            self.measure(manifest, fetch)
        else:
            self.costs.learn(manifest, profile)
        if profile is None or not self.costs.unknown(manifest):
            # Models of one form cost the same, now and in all later plans, so that these differ in what they decide.
            profile = self.costs.profile(manifest)
        _compute_as_measured(skeletons, profile)
        plan = self._planned(manifest, profile, self.budget_bytes)
        self._stems.learn(manifest, skeletons)
        self.kept_bytes = self._stems.share(manifest, skeletons, blobs, most_kept_bytes(plan))
        ledger = Ledger(self.budget_bytes)
        ledger.reserve_workspace(self.kept_bytes)
        device = TorchDevice(
            skeletons,
            blobs,
            Residence(self.device, self._reload_from, budget_bytes=self.budget_bytes),
            ledger,
            refetch=lambda weight: open_blob(fetch(weight)),
            threads=self._threads,
        )
        device.take_in({(name, manifest.release): found for name, found in skeletons.items()})
        return ReleaseRun(manifest, replace(plan, budget_bytes=self.budget_bytes - self.kept_bytes), device)

    def _planned(self, manifest: Manifest, profile: DeviceProfile, budget_bytes: int) -> EdgePlan:
        candidates = released_plans(manifest, profile, self._policy, budget_bytes=budget_bytes)
        return choose_plan(candidates, expected_traffic(cameras_of(models_of(manifest))))

    def _prepared(self, run: ReleaseRun, manifest: Manifest, fetch: Fetch) -> Rollout:
        """The rollout of a release whose models are built and fit."""
        check_fits(manifest, self.budget_bytes)
        profile = self.costs.profile(manifest)
        plan = self._planned(manifest, profile, self.budget_bytes - self.kept_bytes)
        blobs = open_blobs(manifest, fetch)
        changed = restricted(manifest, changed_queries(run.manifest, manifest))
        new = build_skeletons(changed, blobs, self.device, allow_factories=self._allow_factories)
        _compute_as_measured(new, profile)
        run.device.take_blobs(blobs, lambda weight: open_blob(fetch(weight)))
        return Rollout(run, manifest, plan, new)

    def _share_stems(self, run: ReleaseRun, manifest: Manifest) -> None:
        """Of a release that is being served by now, within what was set aside at the start. They only save time."""
        skeletons = {name: run.device.skeleton(name, manifest.release) for name in manifest.queries}
        try:
            self._stems.share(manifest, skeletons, run.device.blobs, self.kept_bytes)
        except StoreError as error:
            log.warning("release %d shares no stems: %s", manifest.release, error)


def _compute_as_measured(skeletons: Mapping[str, Skeleton], profile: DeviceProfile) -> None:
    for name, skeleton in skeletons.items():
        if name in profile.queries:
            skeleton.way = profile.queries[name].way


def check_fits(manifest: Manifest, budget_bytes: int) -> None:
    """Raise OverBudgetError, before anything is loaded, for a query whose weights exceed the budget by themselves."""
    for name in manifest.queries:
        needed = sum(manifest.blobs[weight].tensor_bytes for weight in manifest.blobs_of(name))
        if needed > budget_bytes:
            raise OverBudgetError(
                f"query {name!r}: its weights alone take {format_bytes(needed)} ({needed} bytes), the budget is "
                f"{format_bytes(budget_bytes)} ({budget_bytes} bytes); raise the budget or choose a smaller model"
            )

"""The engine: one device, one memory budget, many queries. A plain class for whatever serves, demonstrates or tests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch

from gemel_ray.edge.ledger import Ledger
from gemel_ray.edge.simulation import cameras_of, choose_plan
from gemel_ray.engine import profiling, replaying
from gemel_ray.engine.blobs import Fetch, open_blob, open_blobs
from gemel_ray.engine.copying import ReloadFrom
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.devices import find_device
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.run import ReleaseRun
from gemel_ray.engine.status import EngineStatus
from gemel_ray.policy.baselines import PolicyPlan, candidate_plans, find_policy
from gemel_ray.policy.sharing import by_blob, models_of
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import OverBudgetError, ServingError
from gemel_ray.spec.profile import DeviceProfile
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
    ) -> None:
        """`device` is 'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'; `threads` bounds a CPU inference.

        `reload_from` says where evicted weights come back from, see engine.copying. `policy` is one of
        policy.baselines; all of them run on the weight sets of the release. Raises InputError for a device or a policy
        that is not there.
        """
        self.budget_bytes = budget_bytes
        self.device = find_device(device)
        self._allow_factories = allow_factories
        self._threads = threads
        self._reload_from = reload_from
        self._policy = replace(find_policy(policy), sharing=by_blob, has_all_memory=False, alternatives=())
        self._run: ReleaseRun | None = None
        self._lock = threading.Lock()

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
        log.info("serving release %d: %d queries on %s", manifest.release, len(manifest.queries), self.device)

    def submit(
        self, query: str, image: Image, *, slo_ms: float | None = None, droppable: bool = True
    ) -> Future[FrameAnswer]:
        """Ask a query about one frame: uint8, height x width x 3, RGB, not to change until the answer is there.

        A frame that is not processed gets the last answer, marked stale, with the reason. A frame that is not
        `droppable` is processed however late. The SLO is the query's own unless given. From any thread. Raises
        FrameError for an array that is no such frame, ServingError for an unknown query or a stopped engine.
        """
        run = self._running()
        return run.submit(query, image, arrived_ms=run.now_ms(), slo_ms=slo_ms, droppable=droppable)

    def replay(
        self, streams: Mapping[str, Sequence[Image]], fps: Mapping[str, float], slo_ms: Mapping[str, float]
    ) -> list[FrameAnswer]:
        """Play recorded frames (by query) at real speed; every frame's answer, in order of arrival.

        Queries' first frames are spread over the frame period. `frame` of an answer is the index in its stream.
        """
        return replaying.replay(self._running(), streams, fps, slo_ms)

    @property
    def planned(self) -> PolicyPlan:
        """What the scheduler runs. ServingError when nothing is being served."""
        return self._running().planned

    def status(self) -> EngineStatus:
        """The release and its queries right now. ServingError when nothing is being served."""
        return self._running().status()

    def stop(self) -> None:
        """Take no more frames, resolve every future, free all weights. Does nothing when stopped."""
        with self._lock:
            if self._run is not None:
                self._run.stop()
                self._run = None

    def _running(self) -> ReleaseRun:
        run = self._run
        if run is None:
            raise ServingError("the engine is stopped; start it with a release")
        return run

    def _started(self, manifest: Manifest, fetch: Fetch, profile: DeviceProfile | None) -> ReleaseRun:
        check_fits(manifest, self.budget_bytes)
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        blobs = open_blobs(manifest, fetch)
        skeletons = build_skeletons(manifest, blobs, self.device, allow_factories=self._allow_factories)
        if profile is None:
            profile = profiling.profile_skeletons(
                manifest, skeletons, blobs, Residence(self.device, self._reload_from), budget_bytes=self.budget_bytes
            )
        models = models_of(manifest)
        plans = candidate_plans(self._policy, models, profile, budget_bytes=self.budget_bytes)
        device = TorchDevice(
            skeletons,
            blobs,
            Residence(self.device, self._reload_from),
            Ledger(self.budget_bytes),
            refetch=lambda weight: open_blob(fetch(weight)),
            threads=self._threads,
        )
        return ReleaseRun(manifest, choose_plan(plans, cameras_of(models)), device)


def check_fits(manifest: Manifest, budget_bytes: int) -> None:
    """Raise OverBudgetError, before anything is loaded, for a query whose weights exceed the budget by themselves."""
    for name in manifest.queries:
        needed = sum(manifest.blobs[weight].tensor_bytes for weight in manifest.blobs_of(name))
        if needed > budget_bytes:
            raise OverBudgetError(
                f"query {name!r}: its weights alone take {format_bytes(needed)} ({needed} bytes), the budget is "
                f"{format_bytes(budget_bytes)} ({budget_bytes} bytes); raise the budget or choose a smaller model"
            )

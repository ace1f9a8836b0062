"""A box on its own: one engine that follows a store, behind the same HTTP application, without Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from gemel_ray.engine.engine import Engine, check_fits
from gemel_ray.engine.sampling import Sampler
from gemel_ray.policy.transition import restricted
from gemel_ray.serving.changes import ChangeReply, StoreChanges, Wish
from gemel_ray.serving.description import Description
from gemel_ray.serving.drift_options import DriftOptions
from gemel_ray.serving.drift_service import DriftService, check_serving, followed_release, locally_reverted
from gemel_ray.serving.drift_status import with_drift
from gemel_ray.serving.edge_care import EdgeCare
from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.options import EdgeOptions, NodeOptions
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.releases import cache_folder
from gemel_ray.serving.status import ServiceStatus
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import GemelError, InputError, ServingError, StoreError, nearest
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Workload
from gemel_ray.weights.following import Follower

log = logging.getLogger(__name__)


class EdgeBox:
    """Implements backend.Backend. Serves what the box's disk has at once, then whatever the store's HEAD names.

    What is wrong with the store or with a new release is told in the status; the release before is served on.
    """

    def __init__(
        self,
        store: str,
        node: NodeOptions,
        options: EdgeOptions,
        *,
        release: int | None = None,
        workload: Workload | None = None,
    ) -> None:
        """`release` stays with one release instead of following HEAD. `workload` is what a re-merge is made of."""
        # Called once where the engine cannot be started again, attempt after attempt: to end the process.
        self.give_up: Callable[[], None] = lambda: None
        # Why it could not be started the last time; None when it could.
        self.failure: str | None = None
        self._options = options
        self._store = store
        folder = cache_folder(store, options.cache)
        self._follower = Follower(store, folder, release=release)
        self._engine = Engine(
            budget_bytes=node.memory,
            device=node.device,
            allow_factories=options.allow_factories,
            threads=options.threads or os.cpu_count(),
            reload_from=options.reload_from,
            ways=node.ways,
            replan_every_s=options.replan_every_s,
        )
        self._node = node.name
        self._changes = StoreChanges(store, follows=release is None)
        # What is served has the queries that are asked for; of a release from disk only the store's own can tell.
        self._is_compared = False
        self._drift = options.drift and DriftService(
            options.drift, self._sampler(options.drift), self._follower, folder / "drift", store, workload,
            revert=self.revert, allow_factories=options.allow_factories,
        )  # fmt: skip
        self._checking = threading.Lock()
        self._care = EdgeCare(options, heal=self._heal, follow=self._has_followed, give_up=lambda: self.give_up())
        # Why the store's release is not the one being served; None when it is.
        self.problem: str | None = None

    def start(self) -> Manifest:
        """Serve the last good release, or the store's where there is none; from then on follow the store.

        Raises StoreError where neither can be had, InputError where `queries` asks for what neither has, and what
        Engine.start raises for a first release.
        """
        last = self._follower.last_good()
        manifest = None if last is None else self._started_from_disk(last)
        # What is on disk may be old; what has just come from the store is not.
        due_s = self._options.poll_every_s if manifest is None else 0.0
        self._manifest = manifest = manifest or self._started_from_store(last)
        self._backend = EngineBackend(
            self._engine, manifest, node=self._node, timeout_s=self._options.request_timeout_s
        )
        self._care.start(due_s)
        if self._drift:
            self._drift.start(manifest)
        return manifest

    def stop(self) -> None:
        """Follow no more, and end the engine. A download under way goes on in its thread until the process ends."""
        self._care.end()
        if self._drift:
            self._drift.stop()
        self._engine.stop()
        if self._care.join():
            # It may just have started the engine again.
            self._engine.stop()

    def check(self) -> bool:
        """Ask the store once, and serve what is new. Raises GemelError, and the release before is served on."""
        with self._checking:
            return self._check()

    def revert(self, query: str, release: int) -> tuple[int | None, str]:
        """Run a query's original again, in place of what it runs in `release`: for all boxes, through the store, where
        it can be written; else on this box until the store's HEAD moves on.

        Gives the release that does so, and a word on how; None where HEAD has other weights of the query already, and
        is served now. Raises OverBudgetError where the original does not fit, StoreError where the originals cannot be
        had, InputError where the query runs its original already, and where another release is served.
        """
        with self._checking:
            check_serving(self._manifest, release)
            if (pinned := self._follower.pinned) is not None:
                raise InputError(f"release {pinned} is pinned and stays; `gemel unpin` lets it go")
            root = self._follower.originals(self._manifest)
            planned = locally_reverted(self._manifest, root, query)
            check_fits(planned, self._engine.budget_bytes)
            try:
                return self._reverted_in_store(query)
            except GemelError as error:
                self._take(planned)
                return planned.release, f"served by this box alone, until the store's HEAD moves on: {error}"

    def _reverted_in_store(self, query: str) -> tuple[int | None, str]:
        drifted, number = self._manifest.queries[query], self._follower.revert(self._manifest, query)
        self._check()
        now = self._manifest.queries.get(query)
        if now is not None and now.weights == drifted.weights:
            raise StoreError(f"release {self._manifest.release} is served, which has the same weights of it")
        if number is None:
            told = f"the store's HEAD has other weights of it already, and is served (release {self._manifest.release})"
            return None, f"nothing was published: {told}"
        return number, "served by all that follow the store"

    def _check(self) -> bool:
        serving = followed_release(self._manifest)
        manifest = self._news(serving if self._is_compared else None)
        if manifest is None:
            return False
        mine = self._mine(manifest)
        # The disk may hold a release for other queries than those asked for since; its number does not tell.
        is_news = manifest.release != serving or mine.queries.keys() != self._manifest.queries.keys()
        if is_news:
            self._take(mine)
        self._is_compared = True
        return is_news

    def _take(self, manifest: Manifest) -> None:
        self._follower.bring(manifest)
        self._engine.roll(manifest, self._follower.fetch)
        self._manifest = manifest
        self._backend.serve(manifest)
        self._follower.settle(manifest)
        if self._drift:
            self._drift.serve(manifest)

    # Backend

    async def describe(self) -> Description:
        """See Backend."""
        return await self._backend.describe()

    async def infer(
        self, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
    ) -> list[FrameAnswer]:
        """See Backend."""
        return await self._backend.infer(query, images, slo_ms=slo_ms, droppable=droppable)

    async def status(self) -> ServiceStatus:
        """See Backend."""
        found = await self._backend.status()
        nodes = tuple(node.model_copy(update={"release_problem": self.problem}) for node in found.nodes)
        found = found.model_copy(update={"nodes": nodes, "pinned": self._follower.pinned})
        return with_drift(found, self._drift.report()) if self._drift else found

    async def change(self, wish: Wish) -> ChangeReply:
        """See Backend. The box asks the store for news right after."""
        done = await asyncio.to_thread(self._changes.do, wish, (self._manifest.release,))
        self._care.hurry()
        return done

    # starting and following

    def _sampler(self, options: DriftOptions) -> Sampler:
        self._engine.sampler = Sampler(every_s=options.sample_every_s, most_bytes=options.waiting)
        return self._engine.sampler

    def _started_from_disk(self, last: Manifest) -> Manifest | None:
        try:
            mine = self._mine(last)
            self._engine.start(mine, self._follower.fetch)
        except GemelError as error:
            log.warning("the last good release (%d) cannot be served from disk: %s", last.release, error)
            return None
        return mine

    def _started_from_store(self, last: Manifest | None) -> Manifest:
        try:
            manifest = self._news(None)
        except StoreError as error:
            if last is not None and (unknown := self._unknown(last)):
                raise InputError(f"{unknown} on this box's disk, and the store gives no other: {error}") from error
            raise
        assert manifest is not None, "nothing is being served that it could equal"
        manifest = self._mine(manifest)
        self._follower.bring(manifest)
        self._engine.start(manifest, self._follower.fetch)
        self._follower.settle(manifest)
        self._is_compared = True
        return manifest

    def _news(self, serving: int | None) -> Manifest | None:
        """See Follower.news. A box makes no releases: a folder that is not there is most likely not mounted."""
        if "://" not in self._store and not Path(self._store).is_dir():
            raise StoreError(f"{self._store} holds no releases: there is no such folder; mount it, or correct --store")
        return self._follower.news(serving)

    def _mine(self, manifest: Manifest) -> Manifest:
        """A release with the queries of this box alone. InputError where it lacks one of them."""
        if unknown := self._unknown(manifest):
            raise InputError(unknown)
        return manifest if self._options.queries is None else restricted(manifest, self._options.queries)

    def _unknown(self, manifest: Manifest) -> str | None:
        """Which query is asked for that a release lacks."""
        for name in self._options.queries or ():
            if name not in manifest.queries:
                return f"queries: release {manifest.release} has no {name!r} ({nearest(name, manifest.queries)})"
        return None

    def _has_followed(self) -> bool:
        try:
            self.check()
        except GemelError as error:
            log.warning("release %d is served on: %s", self._manifest.release, error)
            self.problem = str(error)
        except Exception as error:
            # Whatever it is, cameras are to be answered with what there is.
            log.exception("the store was not followed; release %d is served on", self._manifest.release)
            self.problem = f"an error of the box itself ({type(error).__name__}); its log says more"
        else:
            self.problem = None
        self._tend()
        return self.problem is None

    def _tend(self) -> None:
        try:
            if self._drift:
                self._drift.tend(self._manifest)
        except Exception:
            # No reason to ask the store less often.
            log.exception("the drift watch was not looked after")

    def _heal(self) -> bool:
        """Start the engine anew where its loop has ended: whether it answers now."""
        if not self._checking.acquire(blocking=False):
            return True
        try:
            failure = self._failure()
            if failure is not None and not self._care.is_ending:
                log.error("the engine is started anew: %s", failure)
                self._engine.stop()
                self._engine.start(self._manifest, self._follower.fetch)
        except Exception as error:
            # Also what no library promises, such as a device's own errors: the next attempt may be another matter.
            is_known = isinstance(error, GemelError)
            self.failure = str(error) if is_known else f"{type(error).__name__}: {error}"
            log.error("the engine cannot be started: %s", self.failure, exc_info=not is_known)
            return False
        finally:
            self._checking.release()
        self.failure = None
        return True

    def _failure(self) -> str | None:
        try:
            return self._engine.status().failure
        except ServingError as error:
            return str(error)


def options_for(options: EdgeOptions, cache: Path | None) -> EdgeOptions:
    """The options, with another folder for what is kept on disk where one is given."""
    return options if cache is None else options.model_copy(update={"cache": str(cache)})

"""The drift watch of a fleet as a Serve deployment: a process of its own, outside every engine's budget."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve

from gemel_ray.engine.engine import check_fits
from gemel_ray.engine.sampling import SampledFrame
from gemel_ray.policy.transition import restricted
from gemel_ray.serving.drift_reports import DriftReport
from gemel_ray.serving.drift_service import DriftService, check_serving
from gemel_ray.serving.handles import call
from gemel_ray.serving.ingress_deployment import engine_name
from gemel_ray.serving.options import ServeOptions
from gemel_ray.serving.releases import cache_folder
from gemel_ray.spec.errors import GemelError, InputError, ServingError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import load_workload
from gemel_ray.weights.following import Follower
from gemel_ray.weights.maintenance import reverted

log = logging.getLogger(__name__)

_GATHER_EVERY_S = 1.0
_TIMEOUT_S = 2.0
# Looks at what is served, and at re-merges to submit, once in so many rounds.
_TEND_EVERY = 5


class GatheredSamples:
    """Samples of many engines; at most `most_bytes` wait, the oldest go. From any thread."""

    def __init__(self, most_bytes: int) -> None:
        self.queries: tuple[str, ...] = ()
        self._most_bytes = most_bytes
        self._held: deque[SampledFrame] = deque()
        self._news = threading.Condition()

    def watch_over(self, queries: Collection[str]) -> None:
        """See drift_watch.Samples; engines are told when they are asked next."""
        self.queries = tuple(queries)

    def take(self, timeout_s: float) -> SampledFrame | None:
        """See drift_watch.Samples."""
        with self._news:
            if not self._held:
                self._news.wait(timeout_s)
            return self._held.popleft() if self._held else None

    def add(self, samples: Iterable[SampledFrame]) -> None:
        """What an engine gave."""
        # Arrays out of Ray's object store are read-only, which torch does not take without a warning.
        own = [replace(sample, image=sample.image.copy()) for sample in samples]
        with self._news:
            self._held.extend(own)
            while sum(sample.image.nbytes for sample in self._held) > self._most_bytes:
                self._held.popleft()
            self._news.notify()


class DriftReplica:
    """Serve makes one of these, and a new one when its process dies; what was known of agreement is on disk."""

    async def __init__(self, options: dict[str, Any]) -> None:  # type: ignore[misc] # Serve awaits it
        """`options` is a dumped ServeOptions with 'drift'. Raises WorkloadError for its workload file."""
        self._options = service = ServeOptions.model_validate(options)
        assert service.drift is not None, "deployed only where it is asked for"
        app_name = serve.get_replica_context().app_name
        self._engines = {
            node.name: serve.get_deployment_handle(engine_name(node.name), app_name) for node in service.nodes
        }
        folder = cache_folder(service.store, service.cache)
        self._follower = Follower(service.store, folder)
        self._samples = GatheredSamples(service.drift.waiting)
        workload = load_workload(service.drift.workload) if service.drift.workload else None
        self._service = DriftService(
            service.drift, self._samples, self._follower, Path(folder) / "drift", service.store, workload,
            revert=self._revert, allow_factories=service.allow_factories,
        )  # fmt: skip
        self._serving: Manifest | None = None
        self._service.watch.start()
        self._gathering = asyncio.get_running_loop().create_task(self._keep_gathering())

    async def report(self) -> DriftReport:
        """What is known of drift."""
        return self._service.report()

    async def check_health(self) -> None:
        """Serve asks every few seconds and replaces the process when this raises."""
        if self._gathering.done():
            raise ServingError("the drift watch has stopped gathering; it restarts")

    async def _keep_gathering(self) -> None:
        rounds = 0
        while True:
            try:
                if rounds % _TEND_EVERY == 0:
                    await self._tend()
                await asyncio.gather(*map(self._gather, self._engines))
            except GemelError as error:
                log.warning("drift is not watched: %s", error)
            except Exception:
                log.exception("drift is not watched")
            rounds += 1
            await asyncio.sleep(_GATHER_EVERY_S)

    async def _gather(self, node: str) -> None:
        try:
            asked = call(self._engines[node], f"node {node!r}", "samples", self._samples.queries, timeout_s=_TIMEOUT_S)
            self._samples.add(await asked)
        except ServingError as error:
            log.info("no samples: %s", error)

    async def _tend(self) -> None:
        """Watch the release that most queries are answered by; during a rollout, that is the old one at first."""
        found = await asyncio.gather(*map(self._releases, self._engines))
        releases = Counter(release for node in found for release in node)
        if not releases:
            return
        release = releases.most_common(1)[0][0]
        if self._serving is None or self._serving.release != release:
            self._serving = await asyncio.to_thread(self._follower.store.manifest, release)
            await asyncio.to_thread(self._service.serve, self._serving)
        await asyncio.to_thread(self._service.tend, self._serving)

    async def _releases(self, node: str) -> list[int]:
        try:
            told = await call(self._engines[node], f"node {node!r}", "describe", timeout_s=_TIMEOUT_S)
        except ServingError:
            return []
        return [card.release or told.release for card in told.queries.values()] if told else []

    def _revert(self, query: str, release: int) -> tuple[int | None, str]:
        """See drift_response.Revert; on the monitor's thread."""
        serving = self._serving
        assert serving is not None, "a query of it has drifted"
        check_serving(serving, release)
        planned = restricted(reverted(serving, self._follower.originals(serving), [query]), [query])
        check_fits(planned, max(node.memory for node in self._options.nodes))
        if not self._options.watch:
            raise InputError("the service stays with its release; deploy it with 'watch: true'")
        number = self._follower.revert(serving, query)
        if number is None:
            return None, "nothing was published: the store's HEAD has other weights of it by now, and is rolled out"
        return number, "published; the controller rolls it out"

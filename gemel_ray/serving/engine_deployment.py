"""One node's engine as a Serve deployment: one process, all models of the node in it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gemel_ray.edge.traffic import Camera
from gemel_ray.engine.engine import Engine
from gemel_ray.engine.sampling import SampledFrame, Sampler
from gemel_ray.engine.status import EngineStatus
from gemel_ray.policy.rollout import NodeReport
from gemel_ray.serving.assigned_engine import AssignedEngine
from gemel_ray.serving.description import Description
from gemel_ray.serving.engine_backend import answers
from gemel_ray.serving.options import NodeOptions, ServeOptions
from gemel_ray.serving.pictures import Image
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.profile import DeviceProfile

# Frames that go to the drift watch at once; it asks once a second.
_MOST_SAMPLES = 16


class EngineReplica:
    """Serve makes one of these for each node, and a new one when its process dies. Calls come from handles only."""

    def __init__(self, options: dict[str, Any], node: str) -> None:
        """`options` is a dumped ServeOptions, `node` one of its nodes. Raises what AssignedEngine.boot raises."""
        service = ServeOptions.model_validate(options)
        mine = next(found for found in service.nodes if found.name == node)
        self._engine = _engine(mine, allow_factories=service.allow_factories)
        if service.drift:
            self._engine.sampler = Sampler(every_s=service.drift.sample_every_s, most_bytes=service.drift.waiting)
        self._assigned = AssignedEngine(self._engine, service.store, service.cache, node)
        self._assigned.boot(service.release, with_all=len(service.nodes) == 1, resume=service.has_controller)
        self._timeout_s = service.request_timeout_s

    async def describe(self) -> Description | None:
        """What this engine serves; None while it waits to be assigned something."""
        return self._assigned.describe()

    async def infer(
        self, query: str, images: Sequence[Image], slo_ms: float | None, droppable: bool
    ) -> list[FrameAnswer]:
        """One answer for each frame. Raises ElsewhereError, BusyError, and what Engine.submit raises."""
        self._assigned.check_here(query)
        own = [_writable(image) for image in images]
        try:
            return await answers(
                self._engine, query, own, slo_ms=slo_ms, droppable=droppable, timeout_s=self._timeout_s
            )
        except ServingError:
            # It may have left between the check and the call.
            self._assigned.check_here(query)
            raise

    async def status(self) -> EngineStatus | None:
        """Memory and counts right now; None while it waits to be assigned something."""
        return self._engine.status() if self._assigned.describe() else None

    async def report(self) -> NodeReport:
        """For the controller: what is served, and how the last change went."""
        return self._assigned.report()

    async def assign(self, release: int, queries: Sequence[str], refuse: str | None) -> None:
        """For the controller: serve these queries of a release soon. See AssignedEngine.assign."""
        self._assigned.assign(release, queries, refuse)

    async def costs(self, release: int) -> DeviceProfile:
        """For the controller: what each query of a release costs here. Raises what AssignedEngine.costs raises."""
        return await asyncio.to_thread(self._assigned.costs, release)

    async def samples(self, queries: Sequence[str]) -> list[SampledFrame]:
        """For the drift watch: a few frames of these queries that were set aside since it last asked."""
        sampler = self._engine.sampler
        if sampler is None:
            return []
        sampler.watch_over(queries)
        found = (sampler.take() for _ in range(_MOST_SAMPLES))
        return [sample for sample in found if sample is not None]

    async def replay(self, streams: Mapping[str, Sequence[Image]], cameras: Sequence[Camera]) -> list[FrameAnswer]:
        """Play recorded frames inside this process at real speed, as Engine.replay does: no frame crosses a wire."""
        own = {query: [_writable(image) for image in stream] for query, stream in streams.items()}
        return await asyncio.to_thread(self._engine.replay, own, cameras)

    async def check_health(self) -> None:
        """Serve asks every few seconds and replaces the process when this raises."""
        if self._assigned.describe() and (failure := self._engine.status().failure):
            raise ServingError(failure)

    def __del__(self) -> None:
        if hasattr(self, "_assigned"):
            self._assigned.stop()


def _engine(node: NodeOptions, *, allow_factories: bool) -> Engine:
    # Ray holds a process that books less than one CPU to a single thread, so the number is always given.
    threads = node.threads or os.cpu_count()
    return Engine(
        budget_bytes=node.memory,
        device=node.device,
        allow_factories=allow_factories,
        threads=threads,
        reload_from=node.reload_from,
        ways=node.ways,
        replan_every_s=node.replan_every_s,
    )


def _writable(image: Image) -> Image:
    """Arrays out of Ray's object store are read-only, which torch.from_numpy does not take without a warning."""
    return image if image.flags.writeable else image.copy()

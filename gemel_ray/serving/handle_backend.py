"""The backend over engines on Ray Serve, one deployment a node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from gemel_ray.engine.status import EngineStatus
from gemel_ray.serving.backend import BusyError
from gemel_ray.serving.description import Description
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.status import ServiceStatus, service_status
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import GemelError, ServingError

# A description is asked for anew after this time: an engine that was restarted may serve another release.
_DESCRIPTION_AGE_S = 2.0
# The status page must not wait for a lost node as long as an inference may take.
_STATUS_TIMEOUT_S = 2.0


class HandleBackend:
    """Implements backend.Backend; `engines` by node name. Every call ends in time: a lost engine never answers."""

    def __init__(self, engines: Mapping[str, DeploymentHandle], *, timeout_s: float) -> None:
        self._engines = dict(engines)
        self._timeout_s = timeout_s
        self._description: Description | None = None
        self._described_at = -_DESCRIPTION_AGE_S

    async def describe(self) -> Description:
        """See Backend. What was known last stands in while no engine can be reached."""
        if self._description is None or time.monotonic() - self._described_at >= _DESCRIPTION_AGE_S:
            self._description = await self._asked() or self._description
            self._described_at = time.monotonic()
        if self._description is None:
            raise ServingError(f"none of the engines {sorted(self._engines)} answers yet; try again in a few seconds")
        return self._description

    async def infer(
        self, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
    ) -> list[FrameAnswer]:
        """See Backend."""
        node = homes((await self.describe()).queries, self._engines)[query]
        found: list[FrameAnswer] = await self._call(node, "infer", query, list(images), slo_ms, droppable)
        return found

    async def status(self) -> ServiceStatus:
        """See Backend."""
        found = await asyncio.gather(*(self._node_status(node) for node in self._engines))
        try:
            description = await self.describe()
        except ServingError:
            return service_status(None, dict(zip(self._engines, found, strict=True)), {})
        where = homes(description.queries, self._engines)
        return service_status(description, dict(zip(self._engines, found, strict=True)), where)

    async def _node_status(self, node: str) -> EngineStatus | str:
        try:
            status: EngineStatus = await self._call(node, "status", timeout_s=_STATUS_TIMEOUT_S)
        except GemelError as error:
            return str(error)
        return status

    async def _asked(self) -> Description | None:
        for node in self._engines:
            try:
                description: Description = await self._call(node, "describe", timeout_s=_STATUS_TIMEOUT_S)
            except GemelError:
                continue
            return description
        return None

    async def _call(self, node: str, method: str, *args: object, timeout_s: float | None = None) -> Any:  # noqa: ANN401
        timeout_s = min(timeout_s or self._timeout_s, self._timeout_s)
        try:
            return await asyncio.wait_for(_remote(self._engines[node], method, *args), timeout_s)
        except TimeoutError as error:
            raise ServingError(f"node {node!r} gave no answer within {timeout_s:g} s; is it still running?") from error
        except RayTaskError as error:
            if isinstance(error.cause, GemelError):
                raise error.cause from error
            raise
        except BackPressureError as error:
            raise BusyError(f"node {node!r} has more requests than it takes; try again shortly") from error
        except (RayError, RayServeException) as error:
            reason = type(error).__name__
            raise ServingError(f"node {node!r} has lost its engine ({reason}); it restarts, try again") from error


async def _remote(engine: DeploymentHandle, method: str, *args: object) -> Any:  # noqa: ANN401
    return await getattr(engine, method).remote(*args)


def homes(queries: Iterable[str], nodes: Iterable[str]) -> dict[str, str]:
    """The node that answers each query: dealt out in turn, the same for the same names."""
    ring = list(nodes)
    return {query: ring[place % len(ring)] for place, query in enumerate(sorted(queries))}

"""The backend over one engine in this process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gemel_ray.engine.engine import Engine
from gemel_ray.serving.description import Description, QueryCard
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.status import ServiceStatus, service_status
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import GemelError, ServingError
from gemel_ray.spec.release import Manifest, ReleasedQuery
from gemel_ray.vision.models import task_of


class EngineBackend:
    """Implements backend.Backend over a started engine; stopping it stays with whoever started it."""

    def __init__(self, engine: Engine, manifest: Manifest, *, node: str = "local", timeout_s: float = 10.0) -> None:
        self._engine = engine
        self._description = describe(manifest)
        self._node = node
        self._timeout_s = timeout_s

    async def describe(self) -> Description:
        """See Backend."""
        return self._description

    async def infer(
        self, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
    ) -> list[FrameAnswer]:
        """See Backend."""
        asked = answers(self._engine, query, images, slo_ms=slo_ms, droppable=droppable)
        try:
            return await asyncio.wait_for(asked, self._timeout_s)
        except TimeoutError as error:
            raise ServingError(f"query {query!r}: no answer within {self._timeout_s:g} s; send fewer frames") from error

    async def status(self) -> ServiceStatus:
        """See Backend."""
        homes = dict.fromkeys(self._description.queries, self._node)
        try:
            return service_status(self._description, {self._node: self._engine.status()}, homes)
        except GemelError as error:
            return service_status(self._description, {self._node: str(error)}, homes)


async def answers(
    engine: Engine, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
) -> list[FrameAnswer]:
    """One answer for each frame, in order. Raises what Engine.submit raises."""
    futures = [engine.submit(query, image, slo_ms=slo_ms, droppable=droppable) for image in images]
    return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))


def describe(manifest: Manifest) -> Description:
    """What a release answers."""
    return Description(
        workload=manifest.workload_name,
        release=manifest.release,
        bytes_before=manifest.bytes_before,
        bytes_after=manifest.bytes_after,
        queries={name: _card(released) for name, released in manifest.queries.items()},
    )


def _card(released: ReleasedQuery) -> QueryCard:
    query = released.query
    return QueryCard(
        name=query.name,
        feed=query.feed,
        builder=query.model.builder,
        task=task_of(query.model),
        classes=query.model.classes,
        slo_ms=query.slo_ms,
        accuracy_target=query.accuracy_target,
        agreement=released.accuracy.agreement if released.accuracy else None,
    )

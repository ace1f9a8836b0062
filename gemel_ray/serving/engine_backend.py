"""The backend over one engine in this process, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence

from gemel_ray.engine.engine import Engine
from gemel_ray.engine.run import MOST_PENDING_BYTES
from gemel_ray.serving.backend import BusyError
from gemel_ray.serving.changes import ChangeReply, Wish, change_nothing
from gemel_ray.serving.description import Description, QueryCard
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.status import ServiceStatus, service_status
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import GemelError, ServingError
from gemel_ray.spec.release import BlobInfo, Manifest, ReleasedQuery
from gemel_ray.vision.models import task_of


class EngineBackend:
    """Implements backend.Backend over a started engine; stopping it stays with whoever started it."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        *,
        node: str = "local",
        timeout_s: float = 10.0,
        max_pending_bytes: int = MOST_PENDING_BYTES,
    ) -> None:
        self._engine = engine
        self._intake = Intake(max_pending_bytes)
        self._description = describe(manifest)
        self._node = node
        self._timeout_s = timeout_s

    def serve(self, manifest: Manifest) -> None:
        """Tell callers of another release from now on: the engine serves it."""
        self._description = describe(manifest)

    async def describe(self) -> Description:
        """See Backend."""
        return self._description

    async def infer(
        self, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
    ) -> list[FrameAnswer]:
        """See Backend."""
        asked = answers(self._engine, self._intake, query, images, slo_ms=slo_ms, droppable=droppable)
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

    async def change(self, wish: Wish) -> ChangeReply:
        """See Backend."""
        return await change_nothing(wish)


class Intake:
    """Pixels that wait in an engine: more than it takes are refused here, as BusyError, before it takes any of them."""

    def __init__(self, most_bytes: int = MOST_PENDING_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0

    @contextlib.contextmanager
    def hold(self, images: Sequence[Image]) -> Iterator[None]:
        """While the block lasts, these frames wait. One request alone is never too much."""
        more = sum(image.nbytes for image in images)
        if self._bytes and self._bytes + more > self._most_bytes:
            raise BusyError(
                f"{self._bytes} bytes of pixels wait already and {more} came, {self._most_bytes} are the most; send "
                "them again when answers have come"
            )
        self._bytes += more
        try:
            yield
        finally:
            self._bytes -= more


async def answers(
    engine: Engine, intake: Intake, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
) -> list[FrameAnswer]:
    """One answer for each frame, in order. Raises BusyError, and what Engine.submit raises."""
    with intake.hold(images):
        futures = [engine.submit(query, image, slo_ms=slo_ms, droppable=droppable) for image in images]
        return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))


def describe(manifest: Manifest) -> Description:
    """What a release answers."""
    return Description(
        workload=manifest.workload_name,
        release=manifest.release,
        bytes_before=manifest.bytes_before,
        bytes_after=manifest.bytes_after,
        queries={name: _card(released, manifest.blobs) for name, released in manifest.queries.items()},
    )


def _card(released: ReleasedQuery, blobs: Mapping[str, BlobInfo]) -> QueryCard:
    query, accuracy = released.query, released.accuracy
    return QueryCard(
        name=query.name,
        feed=query.feed,
        builder=query.model.builder,
        task=task_of(query.model),
        classes=query.model.classes,
        slo_ms=query.slo_ms,
        accuracy_target=released.agreement_target,
        agreement=accuracy.agreement if accuracy else None,
        lower_bound=accuracy.lower_bound if accuracy else None,
        original_bytes=sum(blobs[sha].tensor_bytes for sha in released.weights.values()),
    )

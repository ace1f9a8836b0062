"""The backend over one engine in this process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from gemel_ray.engine.backlog import Waiting
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
        self._most_bytes = max_pending_bytes
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
        asked = answers(
            self._engine,
            query,
            images,
            slo_ms=slo_ms,
            droppable=droppable,
            timeout_s=self._timeout_s,
            most_bytes=self._most_bytes,
        )
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


async def answers(
    engine: Engine,
    query: str,
    images: Sequence[Image],
    *,
    slo_ms: float | None,
    droppable: bool,
    timeout_s: float,
    most_bytes: int = MOST_PENDING_BYTES,
) -> list[FrameAnswer]:
    """One answer for each frame, in order. Raises BusyError, and what Engine.submit raises.

    Whoever stops waiting withdraws the frames, as the caller is to do after `timeout_s`.
    """
    futures: list[Future[FrameAnswer]] = []
    # Up to the first wait nobody else comes between: what there is room for has it.
    _check_bytes(engine.waiting(query), images, most_bytes)
    if not droppable:
        _check_time(engine.waiting(query), query, len(images), timeout_s)
    try:
        for image in images:
            futures.append(engine.submit(query, image, slo_ms=slo_ms, droppable=droppable))
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    finally:
        # Nothing changes for those that have their answers.
        for future in futures:
            future.cancel()


def _check_bytes(waiting: Waiting, images: Sequence[Image], most_bytes: int) -> None:
    """Raise BusyError for more pixels than an engine takes, before it takes any; what comes alone is never too much."""
    more_bytes = sum(image.nbytes for image in images)
    if waiting.pixel_bytes and waiting.pixel_bytes + more_bytes > most_bytes:
        raise BusyError(
            f"{waiting.pixel_bytes} bytes of pixels wait already and {more_bytes} came, {most_bytes} are the most; "
            "send them again when answers have come"
        )


def _check_time(waiting: Waiting, query: str, frames: int, timeout_s: float) -> None:
    """Raise BusyError for frames that others keep waiting for too long. If all were let in, all callers would give up,
    each shortly before its turn, and nobody would be answered."""
    needed_s = waiting.ms(frames) / 1e3
    if waiting.frames and needed_s > timeout_s:
        raise BusyError(
            f"query {query!r}: {waiting.frames} frames wait already; with {frames} more they take {needed_s:.3g} s, "
            f"{timeout_s:g} s are the most; send them again when answers have come"
        )


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

"""The endpoints for cameras, dashboards and people, below /v1: frames in, answers out, results as they come, status."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse

from gemel_ray.serving.admission import RETRY_AFTER, Slots
from gemel_ray.serving.backend import Backend, Limits
from gemel_ray.serving.bodies import boundary_of, media_type, parts_of, read_body
from gemel_ray.serving.description import QueryCard
from gemel_ray.serving.events import ServiceEvent
from gemel_ray.serving.pictures import decode, decode_all
from gemel_ray.serving.protocol import card_of
from gemel_ray.serving.replies import FrameReply, FramesReply, fits, frame_reply
from gemel_ray.serving.results import Results, events
from gemel_ray.serving.status import ServiceStatus
from gemel_ray.serving.thumbnails import Thumbnails
from gemel_ray.serving.tokens import Guard
from gemel_ray.spec.answers import FrameAnswer

SloMs = Annotated[float | None, Query(gt=0, le=60_000, allow_inf_nan=False)]


# Nobody but who asked may keep it or show it in a page of their own.
_PRIVATE = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Cameras:
    """Frames of cameras may be dropped: a newer one is worth more than a late one."""

    def __init__(
        self,
        backend: Backend,
        limits: Limits,
        guard: Guard,
        slots: Slots,
        results: Results,
        thumbnails: Thumbnails | None,
    ) -> None:
        self._backend = backend
        self._limits = limits
        self._guard = guard
        self._slots = slots
        self._results = results
        self._thumbnails = thumbnails

    def router(self) -> APIRouter:
        """Everything below /v1."""
        routes = APIRouter(prefix="/v1")
        may_read = [Depends(self._guard.needs("read"))]
        may_infer = [Depends(self._guard.needs("infer")), Depends(self._slots)]
        routes.add_api_route("/queries/{query}/frames", self.frames, methods=["POST"], dependencies=may_infer)
        routes.add_api_route(
            "/queries/{query}/results", self.results, methods=["GET"], dependencies=may_read, response_model=None
        )
        routes.add_api_route("/queries/{query}/thumbnail", self.thumbnail, methods=["GET"], dependencies=may_read)
        routes.add_api_route("/status", self.status, methods=["GET"], dependencies=may_read)
        routes.add_api_route("/events", self.events, methods=["GET"], dependencies=may_read)
        return routes

    async def status(self) -> ServiceStatus:
        """How every node and query is doing."""
        return await self._backend.status()

    async def events(self) -> list[ServiceEvent]:
        """What has happened of late, oldest first."""
        return list((await self._backend.status()).events)

    async def thumbnail(self, query: str) -> Response:
        """The newest frame of a query, give or take two seconds, as a small JPEG; 204 while there is none."""
        card_of(await self._backend.describe(), query)
        if self._thumbnails is None:
            raise HTTPException(404, "this service keeps no frames to look at ('thumbnails: false')")
        found = await asyncio.to_thread(self._thumbnails.jpeg, query)
        if found is None:
            return Response(status_code=204, headers=_PRIVATE)
        return Response(found, media_type="image/jpeg", headers=_PRIVATE)

    async def frames(self, query: str, request: Request, slo_ms: SloMs = None) -> FrameReply | FramesReply:
        """Answer one JPEG or PNG, or several in a multipart body. `slo_ms` stands in for the query's own.

        For one picture, a newer frame of the query or a missed SLO makes the answer a stale one. Of several, each gets
        a forward pass of its own, however late.
        """
        card = card_of(await self._backend.describe(), query)
        kind = media_type(request)
        if kind.get_content_maintype() == "multipart":
            boundary = boundary_of(kind)
            body = await read_body(request, self._limits)
            return await self._several(card, body, boundary, slo_ms)
        if kind.get_content_maintype() != "image" and kind.get_content_type() != "application/octet-stream":
            raise HTTPException(
                415,
                f"Content-Type is {kind['Content-Type']!r}; send image/jpeg, image/png or application/octet-stream, or "
                "several pictures as multipart/mixed or multipart/form-data",
            )
        return await self._one(card, await read_body(request, self._limits), slo_ms)

    async def _one(self, card: QueryCard, body: bytearray, slo_ms: float | None) -> FrameReply:
        # Decoding takes milliseconds, and lets go of the interpreter meanwhile.
        image = await asyncio.to_thread(decode, body, max_pixels=self._limits.max_pixels)
        (found,) = await self._backend.infer(card.name, [image], slo_ms=slo_ms, droppable=True)
        return frame_reply(_answered(found, card), card)

    async def _several(self, card: QueryCard, body: bytearray, boundary: bytes, slo_ms: float | None) -> FramesReply:
        pictures = parts_of(body, boundary, max_parts=self._limits.max_frames)
        images = await asyncio.to_thread(decode_all, pictures, max_pixels=self._limits.max_pixels)
        # Droppable frames of one query would replace each other.
        found = await self._backend.infer(card.name, images, slo_ms=slo_ms, droppable=False)
        frames = tuple(frame_reply(_answered(answer, card), card) for answer in found)
        return FramesReply(query=card.name, release=found[0].release, frames=frames)

    async def results(self, query: str) -> StreamingResponse:
        """Every answer of a query from now on, as Server-Sent Events."""
        card_of(await self._backend.describe(), query)
        if self._results.listeners >= self._limits.max_listeners:
            reason = f"{self._results.listeners} streams of results are open, the most there may be; close one"
            raise HTTPException(429, reason, headers=RETRY_AFTER)
        return StreamingResponse(
            events(self._results, query, heartbeat_s=self._limits.heartbeat_s),
            media_type="text/event-stream",
            # The second keeps nginx from gathering events up.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


def _answered(found: FrameAnswer, card: QueryCard) -> FrameAnswer:
    if found.answer is None or not fits(found.answer, card):
        why = found.reason or "a release with other classes takes over at the moment"
        reason = f"query {found.query!r} has no answer yet: {why}; send the next frame, or raise slo_ms"
        raise HTTPException(503, reason, headers=RETRY_AFTER)
    return found

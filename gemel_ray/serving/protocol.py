"""The endpoints of Open Inference Protocol v2, below /v2. Its messages are in wire.py."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from gemel_ray.serving import binary, wire
from gemel_ray.serving.admission import Slots
from gemel_ray.serving.backend import Backend, Limits
from gemel_ray.serving.bodies import read_body
from gemel_ray.serving.description import Description, QueryCard
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.tokens import Guard


class InferenceProtocol:
    """A query's version is the number of the release."""

    def __init__(self, backend: Backend, limits: Limits, guard: Guard, slots: Slots) -> None:
        self._backend = backend
        self._limits = limits
        self._guard = guard
        self._slots = slots

    def router(self) -> APIRouter:
        """Everything below /v2. Health is open to all: whoever watches the service needs no token for it."""
        routes = APIRouter(prefix="/v2")
        routes.add_api_route("/health/live", self.live, methods=["GET"])
        routes.add_api_route("/health/ready", self.ready, methods=["GET"])
        may_look = [Depends(self._guard.needs("infer", "read"))]
        # Whoever may not call does not take a place from those who may.
        may_infer = [Depends(self._guard.needs("infer")), Depends(self._slots)]
        routes.add_api_route("", self.server, methods=["GET"], dependencies=may_look)
        for model in ("/models/{query}", "/models/{query}/versions/{version}"):
            routes.add_api_route(model, self.model, methods=["GET"], dependencies=may_look)
            routes.add_api_route(f"{model}/ready", self.model_ready, methods=["GET"], dependencies=may_look)
            routes.add_api_route(
                f"{model}/infer", self.infer, methods=["POST"], dependencies=may_infer, response_model=None
            )
        return routes

    async def server(self) -> dict[str, object]:
        """What answers here."""
        return {"name": "gemel_ray", "version": "2", "extensions": [binary.EXTENSION]}

    async def live(self) -> dict[str, bool]:
        """This process answers."""
        return {"live": True}

    async def ready(self) -> JSONResponse:
        """Whether every node answers: 200 or 503."""
        ready = (await self._backend.status()).ready
        return JSONResponse({"ready": ready}, status_code=200 if ready else 503)

    async def model(self, query: str, version: str | None = None) -> wire.ModelMetadata:
        """Inputs and outputs of one query."""
        description = await self._described(query, version)
        return wire.metadata(description.queries[query], description.release_of(query))

    async def model_ready(self, query: str, version: str | None = None) -> JSONResponse:
        """Whether the node that answers a query does so: 200 or 503."""
        await self._described(query, version)
        status = await self._backend.status()
        ready = any(found.name == query and found.arrived is not None for found in status.queries)
        return JSONResponse({"name": query, "ready": ready}, status_code=200 if ready else 503)

    async def infer(self, query: str, request: Request, version: str | None = None) -> Response:
        """Answer a batch of frames, each with a forward pass of its own; tensors in JSON or as bytes behind it."""
        card = (await self._described(query, version)).queries[query]
        body = await read_body(request, self._limits)
        asked, images = await asyncio.to_thread(self._read, body, request.headers.get(binary.JSON_LENGTH), card)
        slo_ms = self._limits.request_timeout_s * 1e3
        answers = await self._backend.infer(query, images, slo_ms=slo_ms, droppable=False)
        return _response(*wire.packed(wire.response(asked, card, answers), asked))

    def _read(self, body: bytearray, json_length: str | None, card: QueryCard) -> tuple[wire.InferRequest, list[Image]]:
        head, behind = binary.split_body(body, json_length)
        asked = wire.parse_request(head)
        wire.check_outputs(asked, card)
        limits = self._limits
        return asked, wire.images_of(asked, behind, max_frames=limits.max_frames, max_pixels=limits.max_pixels)

    async def _described(self, query: str, version: str | None) -> Description:
        description = await self._backend.describe()
        card_of(description, query)
        if version not in (None, str(release := description.release_of(query))):
            raise HTTPException(404, f"version {version} of {query!r} is not served; release {release} is")
        return description


def _response(body: bytes, json_bytes: int | None) -> Response:
    if json_bytes is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={binary.JSON_LENGTH: str(json_bytes)})


def card_of(description: Description, query: str) -> QueryCard:
    """What is known of a query. HTTPException 404, with the nearest name, for one that is not served."""
    if query not in description.queries:
        raise HTTPException(404, description.no_such(query))
    return description.queries[query]

"""The HTTP application: Open Inference Protocol, camera frames, status. Knows neither Ray nor torch."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import Annotated

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse

from gemel_ray import serving
from gemel_ray.serving import wire
from gemel_ray.serving.backend import Backend, Limits
from gemel_ray.serving.description import Description, QueryCard
from gemel_ray.serving.pictures import Image, decode
from gemel_ray.serving.problems import RETRY_AFTER, answer_problems
from gemel_ray.serving.replies import FrameReply, frame_reply
from gemel_ray.serving.status import ServiceStatus

# The page holds its own style and script and speaks to nobody but this service.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)

SloMs = Annotated[float | None, Query(gt=0, le=60_000, allow_inf_nan=False)]


def build_api(backend: Backend, limits: Limits | None = None) -> FastAPI:
    """The application over any backend. Who may call is not checked: keep it on 127.0.0.1.

    A check of callers belongs into `dependencies` of the two routers, so that the page and health stay open.
    """
    api = FastAPI(title="gemel_ray", docs_url=None, redoc_url=None)
    answer_problems(api)
    limits = limits or Limits()
    api.include_router(InferenceProtocol(backend, limits).router())
    api.include_router(Cameras(backend, limits).router())
    api.add_api_route("/", _page, methods=["GET"], response_class=HTMLResponse, include_in_schema=False)
    return api


async def _page() -> HTMLResponse:
    html = resources.files(serving).joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(html, headers={"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-store"})


class Cameras:
    """Endpoints for cameras and people: frames in, answers out, status."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._backend = backend
        self._limits = limits

    def router(self) -> APIRouter:
        """Everything below /v1."""
        routes = APIRouter(prefix="/v1")
        routes.add_api_route("/queries/{query}/frames", self.frame, methods=["POST"])
        routes.add_api_route("/status", self.status, methods=["GET"])
        return routes

    async def status(self) -> ServiceStatus:
        """How every node and query is doing."""
        return await self._backend.status()

    async def frame(self, query: str, request: Request, slo_ms: SloMs = None) -> FrameReply:
        """Answer one JPEG or PNG. A newer frame of the query, or a missed SLO, makes the answer a stale one."""
        card = _card(await self._backend.describe(), query)
        _check_type(request)
        body = await read_body(request, self._limits.max_body_bytes)
        # Decoding takes milliseconds, and lets go of the interpreter meanwhile.
        image = await asyncio.to_thread(decode, body, max_pixels=self._limits.max_pixels)
        (found,) = await self._backend.infer(query, [image], slo_ms=slo_ms, droppable=True)
        if found.answer is None:
            reason = f"query {query!r} has no answer yet: {found.reason}; send the next frame, or raise slo_ms"
            raise HTTPException(503, reason, headers=RETRY_AFTER)
        return frame_reply(found, card)


class InferenceProtocol:
    """The endpoints of Open Inference Protocol v2. A query's version is the number of the release."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._backend = backend
        self._limits = limits

    def router(self) -> APIRouter:
        """Everything below /v2."""
        routes = APIRouter(prefix="/v2")
        routes.add_api_route("", self.server, methods=["GET"])
        routes.add_api_route("/health/live", self.live, methods=["GET"])
        routes.add_api_route("/health/ready", self.ready, methods=["GET"])
        for model in ("/models/{query}", "/models/{query}/versions/{version}"):
            routes.add_api_route(model, self.model, methods=["GET"])
            routes.add_api_route(f"{model}/ready", self.model_ready, methods=["GET"])
            routes.add_api_route(f"{model}/infer", self.infer, methods=["POST"])
        return routes

    async def server(self) -> dict[str, object]:
        """What answers here."""
        return {"name": "gemel_ray", "version": "2", "extensions": []}

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
        return wire.metadata(description.queries[query], description.release)

    async def model_ready(self, query: str, version: str | None = None) -> JSONResponse:
        """Whether the node that answers a query does so: 200 or 503."""
        await self._described(query, version)
        status = await self._backend.status()
        ready = any(found.name == query and found.arrived is not None for found in status.queries)
        return JSONResponse({"name": query, "ready": ready}, status_code=200 if ready else 503)

    async def infer(self, query: str, request: Request, version: str | None = None) -> wire.InferResponse:
        """Answer a batch of frames, each with a forward pass of its own."""
        card = (await self._described(query, version)).queries[query]
        _refuse_binary(request)
        body = await read_body(request, self._limits.max_body_bytes)
        asked, images = await asyncio.to_thread(self._read, body, card)
        slo_ms = self._limits.request_timeout_s * 1e3
        answers = await self._backend.infer(query, images, slo_ms=slo_ms, droppable=False)
        return wire.response(asked, card, answers)

    def _read(self, body: bytes, card: QueryCard) -> tuple[wire.InferRequest, list[Image]]:
        asked = wire.parse_request(body)
        wire.check_outputs(asked, card)
        return asked, wire.images_of(asked, max_frames=self._limits.max_frames, max_pixels=self._limits.max_pixels)

    async def _described(self, query: str, version: str | None) -> Description:
        description = await self._backend.describe()
        _card(description, query)
        if version not in (None, str(description.release)):
            raise HTTPException(404, f"version {version} of {query!r} is not served; release {description.release} is")
        return description


def _card(description: Description, query: str) -> QueryCard:
    if query not in description.queries:
        raise HTTPException(404, description.no_such(query))
    return description.queries[query]


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "application/octet-stream")
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPException(415, f"Content-Type is {kind!r}; send image/jpeg, image/png or application/octet-stream")


def _refuse_binary(request: Request) -> None:
    if "inference-header-content-length" in request.headers:
        raise HTTPException(
            415, "the body holds binary tensors (Inference-Header-Content-Length), which are not understood; send JSON"
        )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """A request's body, refused with 413 as soon as it is seen to be too long."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_long(f"{declared} bytes", max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_long("longer", max_bytes)
    return bytes(body)


def _too_long(found: str, max_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"the body is {found}; at most {max_bytes} bytes are accepted, send smaller or fewer frames"
    )

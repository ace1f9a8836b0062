"""The HTTP application: Open Inference Protocol, camera frames, metrics, status page. Knows neither Ray nor torch."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from importlib import resources

from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse, Response
from prometheus_client.core import Metric

from gemel_ray import serving
from gemel_ray.serving.admission import Slots
from gemel_ray.serving.backend import Backend, Limits
from gemel_ray.serving.cameras import Cameras
from gemel_ray.serving.changing import Changing
from gemel_ray.serving.metrics import CONTENT_TYPE, AnswerMetrics, Load
from gemel_ray.serving.observing import ObservedBackend
from gemel_ray.serving.problems import answer_problems
from gemel_ray.serving.protocol import InferenceProtocol
from gemel_ray.serving.request_ids import RequestIds
from gemel_ray.serving.results import Results
from gemel_ray.serving.thumbnails import Thumbnails
from gemel_ray.serving.tokens import Guard

log = logging.getLogger(__name__)
Telling = Callable[[Iterable[Metric]], None]
# Ray forgets a gauge that is not set for some ten seconds.
_TELL_EVERY_S = 4.0
_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def build_api(
    backend: Backend,
    limits: Limits | None = None,
    guard: Guard | None = None,
    *,
    echo_request_ids: bool = True,
    tell: Telling | None = None,
) -> FastAPI:
    """The application over any backend. Without a guard it answers callers of this machine only.

    `echo_request_ids` is for servers that do not put X-Request-ID on answers themselves; Ray Serve does. `tell` hears
    every few seconds what /metrics would say.
    """
    limits, guard = limits or Limits(), guard or Guard()
    # The schema would tell everybody what only holders of a token may know.
    # A redirect from /v2/ to /v2 would name whatever host the caller says this is.
    api = FastAPI(
        title="gemel_ray", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False,
        lifespan=None if tell is None else lambda api: _telling(tell, families),
    )  # fmt: skip
    answer_problems(api)
    api.add_middleware(RequestIds, is_echoed=echo_request_ids)
    slots, results = Slots(limits.max_in_flight, "requests"), Results()
    metrics, thumbnails = AnswerMetrics(), Thumbnails() if limits.has_thumbnails else None
    observed = ObservedBackend(backend, metrics, results, thumbnails)
    api.include_router(InferenceProtocol(observed, limits, guard, slots).router())
    api.include_router(Cameras(observed, limits, guard, slots, results, thumbnails).router())
    api.include_router(Changing(observed, guard).router())

    def load() -> Load:
        return Load(slots.taken, slots.refused, results.listeners)

    async def families() -> list[Metric]:
        return metrics.families(await backend.status(), load())

    async def scrape() -> Response:
        return Response(metrics.text(await backend.status(), load()), media_type=CONTENT_TYPE)

    api.add_api_route("/metrics", scrape, methods=["GET"], dependencies=[Depends(guard.needs("read"))])
    api.add_api_route("/", _page, methods=["GET"], response_class=HTMLResponse)
    return api


@contextlib.asynccontextmanager
async def _telling(tell: Telling, families: Callable[[], Awaitable[list[Metric]]]) -> AsyncIterator[None]:
    """Tell how everything stands, as long as the application is served."""

    async def tell_on() -> None:
        while True:
            try:
                tell(await families())
            except Exception:
                # Metrics are no reason to end; cameras are answered all the same.
                log.exception("metrics were not told")
            await asyncio.sleep(_TELL_EVERY_S)

    telling = asyncio.create_task(tell_on())
    try:
        yield
    finally:
        telling.cancel()


async def _page() -> HTMLResponse:
    html, headers = _page_and_headers()
    return HTMLResponse(html, headers=headers)


@functools.cache
def _page_and_headers() -> tuple[str, dict[str, str]]:
    """The page; it may run its own style and script and no others, and speaks to nobody but this service."""
    html = resources.files(serving).joinpath("page.html").read_text(encoding="utf-8")
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in _INLINE.findall(html)
    }
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "connect-src 'self'; img-src data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
    return html, {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }

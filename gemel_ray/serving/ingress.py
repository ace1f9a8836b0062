"""The HTTP application: Open Inference Protocol, camera frames, metrics, status page. Knows neither Ray nor torch."""

from __future__ import annotations

from importlib import resources

from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse, Response

from gemel_ray import serving
from gemel_ray.serving.admission import Slots
from gemel_ray.serving.backend import Backend, Limits
from gemel_ray.serving.cameras import Cameras
from gemel_ray.serving.metrics import CONTENT_TYPE, AnswerMetrics, Load
from gemel_ray.serving.observing import ObservedBackend
from gemel_ray.serving.problems import answer_problems
from gemel_ray.serving.protocol import InferenceProtocol
from gemel_ray.serving.request_ids import RequestIds
from gemel_ray.serving.results import Results
from gemel_ray.serving.tokens import Guard

# The page holds its own style and script and speaks to nobody but this service.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def build_api(
    backend: Backend, limits: Limits | None = None, guard: Guard | None = None, *, echo_request_ids: bool = True
) -> FastAPI:
    """The application over any backend. Without a guard it answers callers of this machine only.

    `echo_request_ids` is for servers that do not put X-Request-ID on answers themselves; Ray Serve does.
    """
    limits, guard = limits or Limits(), guard or Guard()
    # The schema would tell everybody what only holders of a token may know.
    api = FastAPI(title="gemel_ray", docs_url=None, redoc_url=None, openapi_url=None)
    answer_problems(api)
    api.add_middleware(RequestIds, is_echoed=echo_request_ids)
    slots, results = Slots(limits.max_in_flight, "requests"), Results()
    metrics = AnswerMetrics()
    observed = ObservedBackend(backend, metrics, results)
    api.include_router(InferenceProtocol(observed, limits, guard, slots).router())
    api.include_router(Cameras(observed, limits, guard, slots, results).router())

    async def scrape() -> Response:
        load = Load(slots.taken, slots.refused, results.listeners)
        return Response(metrics.text(await backend.status(), load), media_type=CONTENT_TYPE)

    api.add_api_route("/metrics", scrape, methods=["GET"], dependencies=[Depends(guard.needs("read"))])
    api.add_api_route("/", _page, methods=["GET"], response_class=HTMLResponse)
    return api


async def _page() -> HTMLResponse:
    html = resources.files(serving).joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(html, headers={"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-store"})

"""Every request has a name, the caller's own or a new one, which its answer and its errors carry too."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
# What may stand in a log line and a header as it came.
_PLAIN = re.compile(r"[\x21-\x7e]{1,128}")


class RequestIds:
    """ASGI middleware. `is_echoed` is for servers that do not give the id back themselves, as Ray Serve's does."""

    def __init__(self, app: ASGIApp, *, is_echoed: bool = True) -> None:
        self._app = app
        self._is_echoed = is_echoed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the request, then pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _PLAIN.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_echoed:
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_named)


def request_id(request: HTTPConnection) -> str | None:
    """The name of a request; None outside the middleware."""
    return getattr(request.state, "request_id", None)

"""Every failure as JSON {"error": reason, "request_id": ...} with the right status, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gemel_ray.serving.admission import RETRY_AFTER
from gemel_ray.serving.backend import BusyError
from gemel_ray.serving.changes import ConflictError, UnchangeableError
from gemel_ray.serving.request_ids import HEADER, request_id
from gemel_ray.spec.errors import GemelError, InputError

log = logging.getLogger(__name__)


def answer_problems(api: FastAPI) -> None:
    """Give an application its error answers."""
    api.add_exception_handler(InputError, _bad_input)
    api.add_exception_handler(BusyError, _busy)
    api.add_exception_handler(ConflictError, _conflict)
    api.add_exception_handler(UnchangeableError, _never)
    api.add_exception_handler(GemelError, _cannot_answer)
    api.add_exception_handler(RequestValidationError, _bad_parameters)
    api.add_exception_handler(HTTPException, _refused)
    api.add_exception_handler(ClientDisconnect, _gone)
    api.add_exception_handler(Exception, _unexpected)


def problem(request: Request, status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """One error answer."""
    told = {"error": reason, "request_id": request_id(request)}
    return JSONResponse(told, status_code=status, headers=headers)


async def _bad_input(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 400, str(error))


async def _busy(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 429, str(error), RETRY_AFTER)


async def _conflict(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 409, str(error))


async def _never(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 501, str(error))


async def _cannot_answer(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 503, str(error), RETRY_AFTER)


async def _bad_parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    reasons = [
        f"{'.'.join(map(str, found['loc']))}: {found['msg']}, got {found['input']!r}" for found in error.errors()
    ]
    return problem(request, 400, "; ".join(reasons))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reason = error.detail
    if error.status_code == 404 and reason == "Not Found":
        reason = f"no such path {_path(request)}; / is the status page, /v2 and /v1/status the service"
    return problem(request, error.status_code, reason, error.headers)


def _path(request: Request) -> str:
    # request.url cannot be made of every request: its query may be anything but UTF-8, its Host no host.
    return str(request.scope["path"])


async def _gone(request: Request, error: Exception) -> JSONResponse:
    log.info("%s: the caller left before its request was whole", _path(request))
    return problem(request, 400, "the request was not whole")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again after this answer, so that the server logs it with its traceback. The answer
    # passes by all middleware, so that it has to name the request itself.
    name = request_id(request)
    reason = f"an error of the service itself ({type(error).__name__}); its log says more"
    return problem(request, 500, reason, {HEADER: name} if name else None)

"""Asking a running service how it is, over HTTP. Needs neither Ray nor torch."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from gemel_ray.serving.status import ServiceStatus
from gemel_ray.spec.errors import InputError, ServingError

_TIMEOUT_S = 15.0


def ask_status(url: str, *, token_file: Path | None = None, token_env: str | None = None) -> dict[str, Any]:
    """GET /v1/status. InputError for what is no URL, a token that cannot be read or one that is refused; ServingError
    where nobody answers, or somebody else."""
    _check_url(url)
    token = _token(token_file, token_env)
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/status")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            return _status(reply.read(), url)
    except urllib.error.HTTPError as error:
        with error:
            reason = _reason(error)
        if error.code in (401, 403):
            raise InputError(f"{url}: {reason} (--token FILE or --token-env VAR)") from error
        raise ServingError(f"{url}: {error.code}, {reason}") from error
    except http.client.HTTPException as error:
        raise _stranger(url, type(error).__name__) from error
    except OSError as error:
        raise ServingError(f"{url}: no service answers ({getattr(error, 'reason', error)}); is it running?") from error


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        # The port is read when it is asked for.
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    # What http.client would not send.
    if not is_one or not url.isascii() or any(sign <= " " or sign == "\x7f" for sign in url):
        raise InputError(f"{url!r} is not the URL of a service; give one such as http://127.0.0.1:8000")


def _status(body: bytes, url: str) -> dict[str, Any]:
    try:
        return ServiceStatus.model_validate_json(body).model_dump(mode="json")
    except ValidationError as error:
        raise _stranger(url, "what it gives as its status is none") from error


def _stranger(url: str, why: str) -> ServingError:
    return ServingError(f"{url}: answers, but is no gemel service ({why}); is the port the right one?")


def _token(file: Path | None, env: str | None) -> str | None:
    if file is not None and env is not None:
        raise InputError(f"both --token {file} and --token-env {env} are given; choose one")
    if env is not None and not os.environ.get(env):
        raise InputError(f"--token-env: {env} is not set; set it, or give --token FILE")
    try:
        text = os.environ[env] if env is not None else file.read_text(encoding="utf-8") if file is not None else None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token {file}: cannot be read ({error}); correct the path or its permissions") from error
    words = (text or "").split()
    # Of several, the first: the others are on their way in or out.
    return words[0] if words else None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (http.client.HTTPException, OSError, ValueError, KeyError, TypeError, RecursionError):
        return "without a reason; is it a gemel service?"

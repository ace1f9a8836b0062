"""Asking a running service how it is, over HTTP. Needs neither Ray nor torch."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemel_ray.spec.errors import InputError, ServingError

_TIMEOUT_S = 15.0


def ask_status(url: str, *, token_file: Path | None = None, token_env: str | None = None) -> dict[str, Any]:
    """GET /v1/status. InputError for what is no URL, a token that cannot be read or one that is refused; ServingError
    where nobody answers."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url!r} is not the URL of a service; give one such as http://127.0.0.1:8000")
    token = _token(token_file, token_env)
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/status")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            return dict(json.load(reply))
    except urllib.error.HTTPError as error:
        with error:
            reason = _reason(error.read())
        if error.code in (401, 403):
            raise InputError(f"{url}: {reason} (--token FILE or --token-env VAR)") from error
        raise ServingError(f"{url}: {error.code}, {reason}") from error
    except (OSError, ValueError) as error:
        raise ServingError(f"{url}: no service answers ({getattr(error, 'reason', error)}); is it running?") from error


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


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return "without a reason; is it a gemel service?"

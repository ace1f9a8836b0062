"""Whether something answers at an address: asked before Ray waits there in silence."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from gemel_ray.spec.errors import InputError

# Where a cluster listens by default, by the scheme of its address.
_PORTS = {"ray": 10001, "http": 8265, "https": 443}
_PORT = 6379
_PATIENCE_S = 3.0
# No address of a machine: a Ray of one's own, and the one that runs here.
_HERE = ("local", "auto")
REMEDY = "start that cluster (`ray start --head`), correct the address, or unset RAY_ADDRESS"


def ray_address() -> str:
    """What RAY_ADDRESS names; a Ray of one's own where it is unset.

    Left to itself, Ray joins whatever cluster was started last on this machine, or waits for one that is gone.
    """
    return os.environ.get("RAY_ADDRESS") or "local"


def check_ray_address(address: str) -> None:
    """Raises InputError where what RAY_ADDRESS names is no address, or does not answer."""
    if why := why_unreachable(address):
        raise InputError(f"RAY_ADDRESS {address} {why}; {REMEDY}")


def why_unreachable(address: str) -> str | None:
    """Why no cluster can be had at an address; None where something answers."""
    if address in _HERE:
        return None
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or _PORTS.get(parts.scheme, _PORT)
        socket.create_connection((parts.hostname or "", port), _PATIENCE_S).close()
    except (OSError, ValueError) as error:
        return f"cannot be reached ({error})"
    return None

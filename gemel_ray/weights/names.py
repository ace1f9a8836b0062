"""The names of a store's files; never a path that leads out of it."""

from __future__ import annotations

import re

from gemel_ray.spec.errors import StoreError

PIN = "PIN"
LINEAGE = "lineage.json"
STATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def blob_name(sha: str) -> str:
    """Where a blob lies. Raises StoreError for what is no blob's name."""
    if _SHA256.fullmatch(sha) is None:
        raise StoreError(f"{sha!r} is not a blob name; one is 64 hexadecimal digits")
    return f"blobs/sha256/{sha[:2]}/{sha}.safetensors"


def manifest_name(release: int) -> str:
    """Where a release lies."""
    return f"releases/{release:06d}.json"


def state_name(name: str) -> str:
    """Where a search's state lies. Raises StoreError for names that could lead elsewhere."""
    if STATE.fullmatch(name) is None:
        raise StoreError(f"{name!r} is not a search's name; use letters, digits, '-', '_' and '.'")
    return f"searches/{name}.json"

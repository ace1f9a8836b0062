"""Sizes as people write them, and back; times and counts in words."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")

MIB = 2**20
_MOST = 2**60


def parse_bytes(size: object) -> int:
    """Bytes in '2GiB', '512 MB' or a plain whole number of bytes; ValueError names the form wanted."""
    if isinstance(size, int) and not isinstance(size, bool):
        found = size
    else:
        match = _SIZE.fullmatch(str(size))
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f"{size!r} is not a size; write a number and a unit, such as '2GiB' or '512MiB'")
        found = round(min(float(match[1]) * _UNITS[match[2].upper()], _MOST))
    if found <= 0:
        raise ValueError(f"{size!r} must be more than zero bytes")
    if found >= _MOST:
        raise ValueError(f"{size!r} is more than any machine holds")
    return found


def format_bytes(count: float) -> str:
    """'42.6 MiB': binary units, one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """'1 blob', '2 blobs'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def readable_time(text: str) -> str:
    """'2026-11-26 09:05 UTC' for ISO 8601's '2026-11-26T09:05:06+00:00'; anything else as it is."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(\.\d+)?(\+00:00|Z)$", r"\1 \2 UTC", text)


ByteSize = Annotated[int, BeforeValidator(parse_bytes)]

"""Request bodies: read up to a limit, and taken apart where they hold several pictures."""

from __future__ import annotations

import asyncio
from email.message import Message

from fastapi import HTTPException, Request

from gemel_ray.serving.backend import Limits
from gemel_ray.spec.errors import FrameError

# RFC 2046 allows no longer boundary.
_LONGEST_BOUNDARY = 70


async def read_body(request: Request, limits: Limits) -> bytearray:
    """A request's body, refused with 413 as soon as it is seen to be too long, and with 408 where it does not arrive in
    time: a camera that was cut off in the middle must not keep its place from others for ever."""
    _refuse_compressed(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_long(f"{declared} bytes", limits.max_body_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.request_timeout_s):
            await _read_into(body, request, limits.max_body_bytes)
    except TimeoutError as error:
        raise _too_slow(len(body), declared, limits.request_timeout_s) from error
    return body


async def _read_into(body: bytearray, request: Request, max_bytes: int) -> None:
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_long("longer", max_bytes)


def _refuse_compressed(request: Request) -> None:
    # A compressed body would have to be unpacked against a limit of its own; pictures are compressed already.
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise HTTPException(415, f"Content-Encoding is {encoding!r}; send the body without compression")


def _too_long(found: str, max_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"the body is {found}; at most {max_bytes} bytes are accepted, send smaller or fewer frames"
    )


def _too_slow(arrived_bytes: int, declared: str, timeout_s: float) -> HTTPException:
    whole = f"{arrived_bytes} of {declared} bytes" if declared.isdigit() else f"{arrived_bytes} bytes, and no end,"
    return HTTPException(
        408,
        f"{whole} arrived within {timeout_s:g} s; send it faster, or smaller or fewer frames, or raise "
        "'request_timeout_s'",
        # What may still come of this body is no request.
        headers={"Connection": "close"},
    )


def media_type(request: Request) -> Message:
    """The Content-Type with its parameters; application/octet-stream when there is none."""
    parsed = Message()
    parsed["Content-Type"] = request.headers.get("content-type", "application/octet-stream")
    return parsed


def boundary_of(kind: Message) -> bytes:
    """What parts a multipart body; FrameError when its Content-Type does not say."""
    boundary = kind.get_boundary()
    if not boundary or len(boundary) > _LONGEST_BOUNDARY or not boundary.isascii():
        raise FrameError(
            f"Content-Type is {kind['Content-Type']!r}; name the boundary, as in multipart/mixed; boundary=frame"
        )
    return boundary.encode()


def parts_of(body: bytes | bytearray, boundary: bytes, *, max_parts: int) -> list[bytes]:
    """The contents of a multipart body (RFC 2046) without their headers, in order.

    multipart/mixed and multipart/form-data are written alike; what a form calls its fields does not matter here.
    Raises FrameError for a body that is cut off or holds no part, or more than `max_parts`.
    """
    delimiter = b"\r\n--" + boundary
    # The first delimiter has no line before it, unless there is a preamble, which counts for nothing.
    sections = (b"\r\n" + body).split(delimiter, max_parts + 1)[1:]
    ends = [place for place, section in enumerate(sections) if section.startswith(b"--")]
    if not ends and len(sections) > max_parts:
        raise FrameError(f"the body holds more than {max_parts} parts; send at most {max_parts} in one request")
    if not ends:
        raise FrameError(
            f"the body has no end ({len(body)} bytes arrived, --{boundary.decode()}-- is missing); send it whole"
        )
    parts = [_content(place, bytes(section)) for place, section in enumerate(sections[: ends[0]])]
    if not parts:
        raise FrameError("the body holds no part; send one picture in each part")
    return parts


def _content(place: int, section: bytes) -> bytes:
    """A part without the rest of its delimiter's line and without its headers, which may be none."""
    padding, line_end, rest = section.partition(b"\r\n")
    _, blank_line, content = (b"\r\n" + rest).partition(b"\r\n\r\n")
    if padding.strip(b" \t") or not line_end or not blank_line:
        raise FrameError(f"part {place} has no empty line after its headers; write headers, an empty line, the picture")
    return content

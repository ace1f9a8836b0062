"""The binary tensor data extension of the Open Inference Protocol: tensors as bytes behind the JSON of a message.

The extension: https://github.com/triton-inference-server/server, `docs/protocol/extension_binary_data.md`.
Little-endian, row-major, no padding; an element of BYTES is its length (four bytes) and its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gemel_ray.spec.errors import FrameError

EXTENSION = "binary_tensor_data"
# Tells the bytes of the JSON at the beginning of a body; without it, the whole body is JSON.
JSON_LENGTH = "Inference-Header-Content-Length"
SIZE = "binary_data_size"

Buffer = bytes | bytearray | memoryview
Flag = Literal["binary_data", "binary_data_output"]

_TYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "INT32": np.dtype("<i4"), "FP32": np.dtype("<f4")}
_LENGTH = struct.Struct("<I")


def split_body(body: Buffer, json_length: str | None) -> tuple[memoryview, memoryview]:
    """A body's JSON and the tensors behind it; `json_length` is the header's value. FrameError for a senseless one."""
    whole = memoryview(body)
    if json_length is None:
        return whole, whole[len(whole) :]
    # isdigit would take digits of other scripts and int() signs and underscores.
    if not (json_length.isascii() and json_length.isdigit()):
        raise FrameError(f"{JSON_LENGTH} is {json_length!r}; send the bytes of the JSON as a whole number")
    if len(json_length) > 12 or int(json_length) > len(whole):
        raise FrameError(f"{JSON_LENGTH} is {json_length}, the body has {len(whole)} bytes; send the body whole")
    return whole[: int(json_length)], whole[int(json_length) :]


def size_of(name: str, parameters: Mapping[str, Any]) -> int | None:
    """A tensor's `binary_data_size`, None for one whose data are in the JSON. FrameError for one that is no size."""
    size = parameters.get(SIZE)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise FrameError(f"input {name!r}: {SIZE!r} is {size!r}; send the bytes of the tensor as a whole number")
    return size


def check_behind(expected: int, behind: Buffer) -> None:
    """Raise FrameError unless the tensors behind the JSON are as long as the JSON says they are."""
    if expected != len(behind):
        raise FrameError(
            f"the inputs' {SIZE!r} add up to {expected} bytes, {len(behind)} follow the JSON; send the tensors whole, "
            f"and {JSON_LENGTH} with the bytes of the JSON alone"
        )


def numbers(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> np.ndarray[Any, Any]:
    """A tensor of numbers in its shape; shares memory with `data`. FrameError when the bytes do not fill the shape."""
    kind = _TYPES[datatype]
    wanted = math.prod(shape) * kind.itemsize
    if len(data) != wanted:
        raise FrameError(
            f"input {name!r}: {SIZE!r} is {len(data)}, {datatype} of shape {list(shape)} takes {wanted} bytes; "
            "correct the shape or send all values"
        )
    return np.frombuffer(data, kind).reshape(shape)


def elements(name: str, count: int, data: Buffer) -> list[bytes]:
    """The elements of a BYTES tensor. FrameError when a length reaches past the end, or their number is not `count`."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        begin = at + _LENGTH.size
        at = begin + (_LENGTH.unpack_from(data, at)[0] if begin <= len(data) else 0)
        if max(at, begin) > len(data):
            raise FrameError(
                f"input {name!r}: element {len(found)} reaches to byte {max(at, begin)} of {len(data)}; send the "
                "length of each element as four bytes, little-endian, before it"
            )
        found.append(bytes(data[begin:at]))
        # A body of zeros would be millions of empty ones.
        if len(found) > count:
            break
    if len(found) != count:
        arrived = "more" if len(found) > count else f"{len(found)}"
        raise FrameError(f"input {name!r}: {arrived} elements of BYTES arrived, 'shape' says {count}; correct it")
    return found


def encoded(datatype: str, data: Sequence[Any]) -> bytes:
    """An output's values as bytes."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in data]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    return np.asarray(data, _TYPES[datatype]).tobytes()


def flag(parameters: Mapping[str, Any], name: Flag) -> bool | None:
    """One of the extension's yes-or-no parameters, None when it is not given. FrameError for anything else."""
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise FrameError(f"parameter {name!r} is {value!r}; send true or false")
    return value

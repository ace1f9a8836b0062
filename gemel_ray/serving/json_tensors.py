"""Tensors as numbers in JSON, flat in row-major order or nested in the form of their shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from gemel_ray.spec.errors import FrameError

# Characters of a value that is quoted because it is wrong.
_LONGEST_TOLD = 40

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def whole_bytes(name: str, shape: Sequence[int], data: list[Any]) -> Bytes:
    """The values in a row, UINT8. FrameError for other values, for their number, and for lists of another form.

    Nothing is made an array before it is known to be whole numbers: one long text among them would be taken as long for
    each.
    """
    values, wanted = _flat(name, shape, data), math.prod(shape)
    if len(values) != wanted:
        raise FrameError(f"input {name!r}: 'data' holds {len(values)} values, shape {list(shape)} needs {wanted}")
    try:
        # True and false count as numbers in Python.
        packed = bytearray(values if set(map(type, values)) == {int} else [-1])
    except ValueError:
        odd = next(value for value in values if type(value) is not int or not 0 <= value <= 255)
        told = f"input {name!r}: 'data' must be whole numbers from 0 to 255; found {_short(odd)}"
        raise FrameError(told) from None
    return np.frombuffer(packed, np.uint8)


def _flat(name: str, shape: Sequence[int], data: list[Any]) -> list[Any]:
    lengths = [len(data)]
    while list in (kinds := set(map(type, data))):
        inner = {len(row) for row in data if type(row) is list}
        if len(kinds) > 1 or len(inner) > 1:
            raise FrameError(f"input {name!r}: 'data' is nested unevenly; send it flat or in the form of 'shape'")
        lengths.append(inner.pop())
        data = list(chain.from_iterable(data))
    if len(lengths) > 1 and lengths != list(shape):
        raise FrameError(f"input {name!r}: 'data' has shape {lengths}, 'shape' says {list(shape)}")
    return data


def _short(value: object) -> str:
    told = repr(value)
    return told if len(told) <= _LONGEST_TOLD else f"{told[:_LONGEST_TOLD]}…"

"""JPEG and PNG bytes to pixels, refusing what is damaged or too large."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from gemel_ray.spec.errors import FrameError
from gemel_ray.spec.feeds import PICTURE_MODES

Image = np.ndarray[Any, np.dtype[np.uint8]]

_MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def decode(data: bytes | bytearray, *, max_pixels: int) -> Image:
    """Pixels of one JPEG or PNG: uint8, H x W x 3, RGB, as stored (an EXIF orientation is not applied).

    Raises FrameError for anything that is not a whole picture of at most `max_pixels`, before its pixels take memory.
    """
    try:
        return _decode(data, max_pixels)
    except UnidentifiedImageError as error:
        raise FrameError(_unidentified(data)) from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise FrameError(f"the picture is far above {max_pixels} pixels ({error}); scale it down") from error
    except FrameError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise FrameError(f"the picture is damaged ({error}); {len(data)} bytes arrived, send it whole") from error


def decode_all(pictures: Sequence[bytes], *, max_pixels: int) -> list[Image]:
    """Pixels of several pictures, together at most `max_pixels`. FrameError as `decode`, naming the picture's place."""
    found: list[Image] = []
    room = max_pixels
    for place, data in enumerate(pictures):
        try:
            found.append(decode(data, max_pixels=max_pixels))
        except FrameError as error:
            raise FrameError(f"picture {place} of {len(pictures)}: {error}") from error
        room -= found[-1].size // 3
        if room < 0:
            raise FrameError(
                f"pictures 0 to {place} have more than {max_pixels} pixels together; send fewer in one request"
            )
    return found


def _unidentified(data: bytes | bytearray) -> str:
    if data.startswith(_MAGICS):
        return f"the picture is damaged near its beginning; {len(data)} bytes arrived, send it whole"
    found = f"it begins with {bytes(data[:8])!r}" if data else "it is empty"
    return f"the body is neither JPEG nor PNG ({found}); send one picture as JPEG or PNG"


def _decode(data: bytes | bytearray, max_pixels: int) -> Image:
    with Pillow.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise FrameError(
                f"the picture is {width} x {height} pixels, at most {max_pixels} are accepted; scale it down"
            )
        if picture.mode not in PICTURE_MODES:
            raise FrameError(f"the picture's pixels are of kind {picture.mode!r}; send 8 bits a channel")
        return np.array(picture.convert("RGB"))

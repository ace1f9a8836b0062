"""Pictures from callers: whole ones decoded, everything else refused by name."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gemel_ray.serving.pictures import decode
from gemel_ray.spec.errors import FrameError

MAX_PIXELS = 10_000


def encoded(pixels, form="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def pixels(height=24, width=36):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def hollow_png(side):
    """A PNG that claims a size and holds no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x" * 100)


def test_a_png_comes_back_to_the_bit():
    frame = decode(encoded(pixels()), max_pixels=MAX_PIXELS)
    assert np.array_equal(frame, pixels())
    assert frame.flags.writeable


def test_a_jpeg_comes_back_as_any_decoder_gives_it():
    data = encoded(pixels(), "JPEG", quality=90)
    assert np.array_equal(decode(data, max_pixels=MAX_PIXELS), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_grey_and_transparent_pictures_become_rgb(mode):
    stream = io.BytesIO()
    Image.fromarray(pixels()).convert(mode).save(stream, "JPEG" if mode == "CMYK" else "PNG")
    assert decode(stream.getvalue(), max_pixels=MAX_PIXELS).shape == (24, 36, 3)


def test_sixteen_bit_grey_is_refused():
    with pytest.raises(FrameError, match="8 bits a channel"):
        decode(encoded(np.zeros((4, 4), dtype=np.uint16)), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("data", [b"", b"GIF89a....", b"hello", encoded(pixels(), "BMP"), encoded(pixels(), "TIFF")])
def test_other_formats_are_refused(data):
    with pytest.raises(FrameError, match="neither JPEG nor PNG"):
        decode(data, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_picture_with_nothing_but_its_first_bytes_is_damaged(form):
    with pytest.raises(FrameError, match="damaged"):
        decode(encoded(pixels(), form)[:10], max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_truncated_picture_is_refused(form):
    data = encoded(pixels(), form)
    with pytest.raises(FrameError, match="damaged"):
        decode(data[: len(data) * 2 // 3], max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("side", [101, 9_500, 20_000, 2**31 - 1])
def test_a_picture_that_claims_too_many_pixels_is_refused_before_they_take_memory(side):
    with pytest.raises(FrameError, match="scale it down"):
        decode(hollow_png(side), max_pixels=MAX_PIXELS)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["JPEG", "PNG"]), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=5))
def test_damage_gives_a_frame_or_a_frame_error_and_nothing_else(form, damage):
    data = bytearray(encoded(pixels(), form))
    for place, value in damage:
        data[int(place * len(data))] = value
    with contextlib.suppress(FrameError):
        assert decode(bytes(data), max_pixels=MAX_PIXELS).dtype == np.uint8

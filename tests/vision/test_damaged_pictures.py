"""Pictures and their labels on disk: what is damaged or of another kind is named, and nothing is guessed."""

import io
import json

import numpy as np
import PIL.Image
import pytest

from gemel_ray.serving.pictures import decode
from gemel_ray.spec.errors import FeedError, FrameError
from gemel_ray.spec.feeds import CocoFeed, TilesFeed
from gemel_ray.vision.feeds import open_feed
from gemel_ray.vision.feeds.folders import read_image

RAMP = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)


def png(pixels, mode=None):
    data = io.BytesIO()
    picture = PIL.Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(data, "PNG")
    return data.getvalue()


def test_sixteen_bits_are_refused_by_feeds_as_by_a_service(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(png((65535 * RAMP).astype(np.uint16)))
    with pytest.raises(FeedError, match=r"deep\.png has pixels of kind 'I.*'; convert it to 8 bits a channel"):
        read_image(path, "f")
    with pytest.raises(FrameError, match="send 8 bits a channel"):
        decode(path.read_bytes(), max_pixels=10_000)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_eight_bits_are_read_as_a_service_reads_them(tmp_path, mode):
    path = tmp_path / "picture.png"
    path.write_bytes(png(NOISE, mode))
    assert np.array_equal(read_image(path, "f"), decode(path.read_bytes(), max_pixels=100_000))


def test_a_png_that_is_damaged_further_back_is_named(tmp_path):
    path, data = tmp_path / "damaged.png", bytearray(png(NOISE))
    second = data.find(b"IDAT", data.find(b"IDAT") + 4)
    data[second] = 0
    path.write_bytes(data)
    with pytest.raises(FeedError, match=r"damaged\.png is no readable image"):
        read_image(path, "f")


def coco(folder, **changes):
    """The boxes of one picture's annotations."""
    PIL.Image.fromarray(NOISE).save(folder / "a.png")
    document = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [],
        "categories": [{"id": 3, "name": "car"}],
    }
    (folder / "notes.json").write_text(json.dumps(document | changes))
    spec = CocoFeed(kind="coco", images=str(folder), annotations=str(folder / "notes.json"))
    return [frame.boxes for frame in open_feed("c", spec).frames()]


def annotated(*bbox):
    return {"annotations": [{"image_id": 7, "category_id": 3, "bbox": bbox}]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": {"a": 1}}, r"it has no list 'images'"),
        ({"images": [{"file_name": "a.png"}]}, r"images\.0 \(KeyError: 'id'\)"),
        ({"images": [{"id": [7], "file_name": "a.png"}]}, r"images\.0 .*of a wrong type"),
        ({"images": [{"id": 7, "file_name": 5}]}, r"images\.0 .*of a wrong type"),
        ({"annotations": ["x"]}, r"annotations\.0"),
        (annotated(), r"annotations\.0"),
        (annotated(float("nan"), 0, 10, 10), r"annotations\.0 .*bbox \[nan"),
        (annotated(0, 0, -10, 10), r"annotations\.0 .*bbox \[0, 0, -10"),
        ({"categories": []} | annotated(0, 0, 10, 10), r"annotations\.0 \(KeyError: 3\)"),
    ],
)
def test_an_entry_that_is_not_in_cocos_form_is_named(tmp_path, changes, told):
    with pytest.raises(FeedError, match=rf"notes\.json is not in COCO's form: {told}"):
        coco(tmp_path, **changes)


def test_boxes_without_area_show_nothing(tmp_path):
    assert [len(boxes) for boxes in coco(tmp_path, **annotated(5, 5, 0, 10))] == [0]
    assert [len(boxes) for boxes in coco(tmp_path, **annotated(5, 5, 1, 10))] == [1]


def tiles(folder, data):
    (folder / "frames").mkdir()
    PIL.Image.fromarray(NOISE).save(folder / "frames" / "000001.jpg")
    (folder / "meta.json").write_text('{"target": "car"}')
    (folder / "tiles.jsonl").write_bytes(data)
    return [frame.image.shape for frame in open_feed("t", TilesFeed(kind="tiles", path=str(folder))).frames()]


def tile(*xywh, cell=(0, 0)):
    return json.dumps({"frame": 1, "cell": cell, "xywh": xywh, "y": 1, "split": "train"}).encode()


def test_whole_numbers_may_be_written_as_fractions(tmp_path):
    assert tiles(tmp_path, tile(0.0, 2.0, 64, 32)) == [(32, 64, 3)]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (tile(0.5, 0, 64, 64), r"line 1: ValueError.*no part of a frame in whole pixels"),
        (tile(-10, 0, 64, 64), r"line 1: ValueError.*no part of a frame in whole pixels"),
        (tile(0, 0, 0, 64), r"line 1: ValueError.*no part of a frame in whole pixels"),
        (tile(float("inf"), 0, 64, 64), r"line 1: OverflowError"),
        (tile(0, 0, 64, 64) + b"\n" + tile(0, 0, 64, 64, cell=("a", "b")), r"line 2: ValueError"),
        (tile(500, 0, 64, 64), r"tile \[0, 0\] lies outside of .*000001\.jpg"),
        (b"\xff\xfe", r"tiles\.jsonl cannot be read .*UTF-8"),
    ],
)
def test_tiles_that_are_none_are_named(tmp_path, data, told):
    with pytest.raises(FeedError, match=told):
        tiles(tmp_path, data)

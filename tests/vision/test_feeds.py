"""Feeds: real files, deterministic streets, and errors that name the file."""

import json
from collections import Counter

import av
import numpy as np
import PIL.Image
import pytest

from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.feeds import CocoFeed, ImageFolderFeed, StreetsFeed, TilesFeed, VideoFeed
from gemel_ray.vision.feeds import open_feed
from gemel_ray.vision.feeds.labels import boxes_of, class_of, unknown_classes

CLASSES = ("background", "car", "truck", "bus", "person", "bike")


def streets(**changes):
    return open_feed("s", StreetsFeed(kind="streets", **({"frames": 200} | changes)))


def test_streets_are_the_same_for_the_same_seed_and_differ_between_cameras():
    first, again = list(streets(seed=4).frames()), list(streets(seed=4).frames())
    assert all(np.array_equal(one.image, other.image) for one, other in zip(first, again, strict=True))
    assert [frame.boxes for frame in first] == [frame.boxes for frame in again]
    assert not np.array_equal(first[0].image, next(streets(seed=5).frames()).image)


def test_a_streets_frame_does_not_depend_on_those_before_it():
    camera = streets(seed=2)
    assert np.array_equal(camera.frame(77).image, list(camera.frames())[77].image)


def test_streets_show_every_kind_and_are_often_empty():
    shown = Counter(class_of(frame, CLASSES) for seed in range(3) for frame in streets(seed=seed, frames=600).frames())
    assert set(shown) == set(CLASSES)
    assert 0.35 < shown["background"] / shown.total() < 0.8


def test_boxes_lie_inside_the_frame_on_pixels_that_moved():
    camera = streets(seed=1, width=128, height=96)
    frames = list(camera.frames())
    median = np.median([frame.image for frame in frames], axis=0)
    for frame in frames:
        for box in frame.boxes:
            assert min(box.x, box.y) >= 0
            assert box.x + box.width <= 128 + 1e-6
            assert box.y + box.height <= 96 + 1e-6
    boxed, elsewhere = [], []
    for frame in frames[::10]:
        change = np.abs(frame.image - median).mean(axis=2)
        inside = np.zeros(change.shape, bool)
        for box in frame.boxes:
            inside[round(box.y) : round(box.y + box.height), round(box.x) : round(box.x + box.width)] = True
        boxed.extend(change[inside])
        elsewhere.extend(change[~inside])
    assert np.mean(boxed) > 2 * np.mean(elsewhere)


def test_dusk_darkens_the_end_of_the_clip():
    frames = list(streets(seed=3, dusk=1.0).frames())
    assert frames[-1].image.mean() < 0.6 * frames[0].image.mean()


def write_video(path, frames=30, fps=30, codec="mpeg4"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            image = np.full((48, 64, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def test_a_video_is_sampled_at_the_wanted_rate(tmp_path):
    write_video(tmp_path / "clip.mp4")
    feed = open_feed("v", VideoFeed(kind="video", uri=str(tmp_path / "clip.mp4"), fps=10))
    frames = list(feed.frames())
    assert len(frames) == 10
    assert frames[0].image.shape == (48, 64, 3)
    assert [round(frame.time_s, 2) for frame in frames[:3]] == [0.0, 0.1, 0.2]
    assert abs(float(frames[3].image.mean()) - 72) < 6
    assert frames[0].label is None
    assert class_of(frames[0], CLASSES) is None


def test_a_folder_of_videos_is_played_in_order_of_name_as_one(tmp_path):
    for name in ("10.mp4", "09.mp4"):
        write_video(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no video")
    feed = open_feed("v", VideoFeed(kind="video", uri=str(tmp_path), fps=10))
    frames = list(feed.frames())
    assert [round(frame.time_s, 2) for frame in frames] == [round(0.1 * number, 2) for number in range(20)]
    assert [frame.index for frame in frames] == list(range(20))
    assert frames[10].image.mean() < 10 < frames[9].image.mean()
    (tmp_path / "10.mp4").write_bytes(b"none")
    with pytest.raises(FeedError, match=r"10\.mp4 cannot be opened as video"):
        list(feed.frames())


def test_a_video_whose_clock_starts_anew_goes_on_where_it_was(tmp_path):
    for name, frames in (("one.ts", 21), ("other.ts", 9), ("whole.ts", 30)):
        write_video(tmp_path / name, frames, codec="mpeg2video")
    (tmp_path / "joined.ts").write_bytes((tmp_path / "one.ts").read_bytes() + (tmp_path / "other.ts").read_bytes())
    joined, whole = (
        list(open_feed("v", VideoFeed(kind="video", uri=str(tmp_path / name), fps=10)).frames())
        for name in ("joined.ts", "whole.ts")
    )
    assert [round(frame.time_s, 2) for frame in joined] == [round(frame.time_s, 2) for frame in whole]
    assert joined[8].image.mean() < 30 < joined[7].image.mean()


def test_a_folder_without_videos_is_told(tmp_path):
    with pytest.raises(FeedError, match=r"holds no videos \(\.avi, "):
        open_feed("v", VideoFeed(kind="video", uri=str(tmp_path)))


def test_a_damaged_or_missing_video_is_named(tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(FeedError, match="no video file"):
        open_feed("v", VideoFeed(kind="video", uri=str(path)))
    write_video(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(FeedError, match=r"clip\.mp4"):
        list(open_feed("v", VideoFeed(kind="video", uri=str(path))).frames())


def image_file(path, colour=(200, 10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (20, 10), colour).save(path)


def test_image_folders_label_by_folder_and_name_a_corrupt_image(tmp_path):
    image_file(tmp_path / "car" / "1.png")
    image_file(tmp_path / "none" / "2.png")
    feed = open_feed("i", ImageFolderFeed(kind="image_folder", path=str(tmp_path)))
    assert [class_of(frame, ("none", "car")) for frame in feed.frames()] == ["car", "none"]
    (tmp_path / "car" / "3.png").write_bytes(b"not an image")
    with pytest.raises(FeedError, match=r"3\.png is no readable image"):
        list(open_feed("i", ImageFolderFeed(kind="image_folder", path=str(tmp_path))).frames())


def test_coco_boxes_come_with_their_names_and_crowds_are_left_out(tmp_path):
    image_file(tmp_path / "a.png")
    boxes = [
        {"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 5]},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 10], "iscrowd": 1},
    ]
    document = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": boxes,
        "categories": [{"id": 3, "name": "truck"}],
    }
    notes = tmp_path / "notes.json"
    notes.write_text(json.dumps(document))
    spec = CocoFeed(kind="coco", images=str(tmp_path), annotations=str(notes))
    (frame,) = open_feed("c", spec).frames()
    (box,) = boxes_of(frame, ("background", "vehicle"))
    assert (box.label, box.x, box.width) == ("vehicle", 1, 10)
    notes.write_text('{"images": []}')
    with pytest.raises(FeedError, match="categories"):
        open_feed("c", spec)


def test_classes_a_feed_never_shows_are_found():
    assert unknown_classes(("vehicle", "dog"), frozenset({"car"})) == ("dog",)


def test_a_bad_line_of_tiles_is_named(tmp_path):
    (tmp_path / "meta.json").write_text('{"target": "car"}')
    (tmp_path / "tiles.jsonl").write_text('{"frame": 1}\n')
    with pytest.raises(FeedError, match=r"tiles\.jsonl, line 1"):
        open_feed("t", TilesFeed(kind="tiles", path=str(tmp_path)))


@pytest.mark.data
def test_real_cameras_give_their_tiles(shared_video):
    for camera in sorted((shared_video / "cameras").iterdir()):
        feed = open_feed("t", TilesFeed(kind="tiles", path=str(camera)))
        frames = list(feed.frames())
        assert {frame.label for frame in frames} == feed.vocabulary
        assert {frame.split for frame in frames} == {"train", "test"}
        assert all(frame.image.dtype == np.uint8 and frame.image.ndim == 3 for frame in frames)


@pytest.mark.data
def test_real_clips_are_decoded(shared_video):
    feed = open_feed("v", VideoFeed(kind="video", uri=str(shared_video / "clips" / "car-detection.mp4"), fps=5))
    frames = list(feed.frames())
    assert frames[0].image.shape == (432, 768, 3)
    assert 148 <= len(frames) <= 153

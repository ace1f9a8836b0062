"""Frames kept on disk come back as a feed, within their bytes."""

import contextlib
import resource
import signal
import threading

import numpy as np
import pytest

from gemel_ray.spec.answers import Box, Classified, Detected
from gemel_ray.spec.errors import InputError, StoreError
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.feeds.keeping import KeptFrames
from gemel_ray.vision.feeds.opening import open_feed

CLASSIFIER = ModelSpec(architecture="squeezenet1_1", classes=("background", "car", "person"))
DETECTOR = ModelSpec(architecture="ssdlite320_mobilenet_v3_large", classes=("background", "car", "person"))


def frame(value=100, height=24, width=32):
    return np.full((height, width, 3), value, np.uint8)


def label(name):
    return Classified(name, (0.2, 0.5, 0.3))


def test_classified_frames_come_back_in_order_of_time_with_the_originals_answers(tmp_path):
    kept = KeptFrames(tmp_path / "kept", CLASSIFIER, most_bytes=1 << 20)
    for at_ms, (name, value) in enumerate([("car", 10), ("background", 60), ("car", 200)], start=1000):
        kept.keep(frame(value), label(name), at_ms)
    feed = open_feed("f", kept.feed(fps=5))
    frames = list(feed.frames())
    assert [found.label for found in frames] == ["car", "background", "car"]
    assert [round(float(found.image.mean())) for found in frames] == [10, 60, 200]
    assert feed.fps == 5
    assert feed.vocabulary == {"background", "car", "person"}, "a class that was never seen is known all the same"


def test_detected_frames_come_back_with_their_boxes(tmp_path):
    kept = KeptFrames(tmp_path / "kept", DETECTOR, most_bytes=1 << 20)
    box = Box("person", 0.9, 3.5, 4, 10, 12)
    kept.keep(frame(), Detected((box,)), 1)
    kept.keep(frame(), Detected(()), 2)
    feed = open_feed("f", kept.feed(fps=5))
    with_box, empty = feed.frames()
    assert with_box.boxes == (Box("person", 1.0, 3.5, 4, 10, 12),)
    assert empty.boxes == ()
    assert feed.vocabulary == {"car", "person"}


@pytest.mark.parametrize(("model", "answer"), [(CLASSIFIER, label("car")), (DETECTOR, Detected(()))])
def test_the_newest_stay_within_the_bytes_also_after_a_restart(tmp_path, model, answer):
    one = KeptFrames(tmp_path / "one", model, most_bytes=1 << 20)
    one.keep(frame(), answer, 1)
    most_bytes = 3 * one.held_bytes
    for start in (0, 5):
        kept = KeptFrames(tmp_path / "kept", model, most_bytes=most_bytes)
        for at_ms in range(start, start + 5):
            kept.keep(frame(), answer, at_ms)
            assert kept.held_bytes <= most_bytes
    assert len(kept) == 3
    names = sorted(path.stem for path in (tmp_path / "kept").rglob("*.jpg"))
    assert names == [f"{at_ms:015d}" for at_ms in (7, 8, 9)]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file())
    assert on_disk == kept.held_bytes


def test_frames_of_the_same_millisecond_are_all_kept(tmp_path):
    kept = KeptFrames(tmp_path / "kept", CLASSIFIER, most_bytes=1 << 20)
    for _ in range(3):
        kept.keep(frame(), label("car"), 7)
    assert len(list((tmp_path / "kept" / "car").iterdir())) == 3


@pytest.mark.parametrize("name", ["../car", "a/b", "..", ".", "nul\0"])
def test_a_class_that_is_no_folder_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be the name of a folder"):
        KeptFrames(tmp_path / "kept", ModelSpec(architecture="resnet18", classes=("background", name)), most_bytes=1)


def test_a_clock_that_jumps_does_not_change_which_frames_are_the_newest(tmp_path):
    one = KeptFrames(tmp_path / "one", CLASSIFIER, most_bytes=1 << 20)
    one.keep(frame(), label("car"), 1)
    most_bytes = 3 * one.held_bytes + 10
    times_ms, values = [5_000, 4_000, 4_102_444_800_000, 10, 10], [20, 60, 100, 140, 180]
    for at_ms, value in zip(times_ms, values, strict=True):
        # Every time by another process, which knows the order by the names alone.
        KeptFrames(tmp_path / "kept", CLASSIFIER, most_bytes=most_bytes).keep(frame(value), label("car"), at_ms)
    frames = open_feed("f", KeptFrames(tmp_path / "kept", CLASSIFIER, most_bytes=most_bytes).feed(fps=5)).frames()
    assert [round(float(found.image.mean())) for found in frames] == values[-3:]


@contextlib.contextmanager
def room_for(file_bytes):
    """As on a disk that is nearly full: no file grows beyond so many bytes."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(("model", "answer"), [(CLASSIFIER, label("car")), (DETECTOR, Detected(()))])
def test_a_full_disk_leaves_whole_frames_and_nothing_of_the_one_that_did_not_fit(tmp_path, model, answer):
    kept = KeptFrames(tmp_path / "kept", model, most_bytes=1 << 20)
    kept.keep(NOISE, answer, 1)
    files = sorted((tmp_path / "kept").rglob("*"))
    with room_for(2000), pytest.raises(StoreError, match="cannot be written"):
        kept.keep(NOISE, answer, 2)
    assert sorted((tmp_path / "kept").rglob("*")) == files
    assert (len(kept), len(list(open_feed("f", kept.feed(fps=5)).frames()))) == (1, 1)


def test_annotations_never_name_a_frame_that_has_gone(tmp_path):
    kept = KeptFrames(tmp_path / "kept", DETECTOR, most_bytes=1 << 20)
    for at_ms in range(20):
        kept.keep(NOISE, Detected(()), at_ms)
    spec, held = kept.feed(fps=5), kept.held_bytes
    # Also by a process that starts anew, and did not write them.
    for watching_of in (lambda: kept, lambda: KeptFrames(tmp_path / "kept", DETECTOR, most_bytes=held)):
        watching = watching_of()
        watching._most_bytes = held
        for at_ms in range(100, 140):
            watching.keep(NOISE, Detected(()), at_ms)
            assert watching.held_bytes <= held
            assert len(list(open_feed("f", spec).frames())) > 10


def test_where_annotations_cannot_follow_there_are_none(tmp_path):
    kept = KeptFrames(tmp_path / "kept", DETECTOR, most_bytes=1 << 20)
    for at_ms in range(60):
        kept.keep(frame(), Detected((Box("car", 0.9, 1, 2, 3, 4),)), at_ms)
    kept.feed(fps=5)
    kept._most_bytes = kept.held_bytes
    with room_for(3000):
        kept.keep(frame(), Detected(()), 100)
    assert not (tmp_path / "kept" / "annotations.json").exists()
    assert kept.held_bytes <= kept._most_bytes


def test_frames_may_be_kept_while_another_thread_writes_the_annotations(tmp_path):
    kept, ended = KeptFrames(tmp_path / "kept", DETECTOR, most_bytes=1 << 20), threading.Event()
    for at_ms in range(50):
        kept.keep(frame(), Detected(()), at_ms)

    def keep_on():
        while not ended.is_set():
            kept.keep(frame(), Detected(()), 0)

    keeping = threading.Thread(target=keep_on)
    keeping.start()
    try:
        for _ in range(20):
            assert len(list(open_feed("f", kept.feed(fps=5)).frames())) >= 50
    finally:
        ended.set()
        keeping.join()


def test_frames_answered_in_other_words_than_the_models_are_left_out(tmp_path):
    kept = KeptFrames(tmp_path / "kept", DETECTOR, most_bytes=1 << 20)
    for at_ms, name in enumerate(("car", "person")):
        kept.keep(frame(), Detected((Box(name, 0.9, 1, 2, 3, 4),)), at_ms)
    renamed = DETECTOR.model_copy(update={"classes": ("background", "van", "person")})
    feed = open_feed("f", KeptFrames(tmp_path / "kept", renamed, most_bytes=1 << 20).feed(fps=5))
    assert [box.label for found in feed.frames() for box in found.boxes] == ["person"]
    assert len(list(feed.frames())) == 1


def test_what_a_process_left_that_died_while_it_kept_a_frame_is_removed(tmp_path):
    kept = KeptFrames(tmp_path / "kept", DETECTOR, most_bytes=1 << 20)
    kept.keep(frame(), Detected(()), 1)
    files = sorted((tmp_path / "kept").rglob("*"))
    (tmp_path / "kept" / "images" / ".writing-ab").write_bytes(b"half")
    (tmp_path / "kept" / "images" / "000000000000002.boxes.json").write_text("{")
    assert len(KeptFrames(tmp_path / "kept", DETECTOR, most_bytes=1 << 20)) == 1
    assert sorted((tmp_path / "kept").rglob("*")) == files

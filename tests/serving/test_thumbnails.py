"""The newest frames: small, few, forgotten."""

import io

import numpy as np
import pytest
from PIL import Image

from gemel_ray.serving.replies import ClassifiedReply, FrameReply
from gemel_ray.serving.thumbnails import Thumbnails


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def reply(label="car"):
    answer = ClassifiedReply(label=label, scores={label: 1.0})
    return FrameReply(query="a", frame=0, fresh=True, reason=None, latency_ms=1, release=1, answer=answer)


def number(thumbnails, query="a"):
    told = thumbnails.told(query)
    return told and told.number


def frame(value, height=48, width=64):
    return np.full((height, width, 3), value, np.uint8)


def seen(thumbnails, query):
    return np.asarray(Image.open(io.BytesIO(thumbnails.jpeg(query))))


@pytest.mark.parametrize(
    ("height", "width", "shown"), [(1, 1, (1, 1)), (48, 64, (48, 64)), (1080, 1920, (180, 320)), (4321, 7, (309, 1))]
)
def test_no_picture_is_longer_than_320_pixels(height, width, shown):
    thumbnails = Thumbnails()
    thumbnails.offer("a", frame(90, height, width), reply)
    assert seen(thumbnails, "a").shape == (*shown, 3)
    assert abs(int(seen(thumbnails, "a").mean()) - 90) <= 2


def test_a_frame_takes_the_formers_place_only_once_that_is_old():
    clock = Clock()
    thumbnails = Thumbnails(every_s=2, now_s=clock)
    assert (number(thumbnails), thumbnails.jpeg("a")) == (None, None)
    thumbnails.offer("a", frame(10), reply)
    clock.now_s = 1.9
    thumbnails.offer("a", frame(200), reply)
    assert (number(thumbnails), round(seen(thumbnails, "a").mean())) == (1, 10)
    clock.now_s = 2.0
    thumbnails.offer("a", frame(200), lambda: reply("bus"))
    assert (number(thumbnails), round(seen(thumbnails, "a").mean())) == (2, 200)
    assert thumbnails.told("a").answer.label == "bus", "a frame and the answer to it belong together"


def test_what_is_kept_is_a_copy_of_its_own():
    thumbnails, given = Thumbnails(), frame(10)
    thumbnails.offer("a", given, reply)
    given[:] = 250
    assert round(seen(thumbnails, "a").mean()) == 10


def test_frames_of_queries_that_went_are_forgotten():
    thumbnails = Thumbnails()
    for query in ("a", "b"):
        thumbnails.offer(query, frame(10), reply)
    thumbnails.forget_all_but(["b"])
    assert (number(thumbnails), number(thumbnails, "b")) == (None, 1)

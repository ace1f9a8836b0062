"""A camera that is read over RTSP, and what goes wrong with one."""

import contextlib
import socket

import pytest
from rtsp_camera import Camera

from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.feeds import VideoFeed
from gemel_ray.vision.feeds import video
from gemel_ray.vision.feeds.opening import open_feed


@pytest.fixture
def camera_of():
    with contextlib.ExitStack() as cameras:
        yield lambda **given: cameras.enter_context(contextlib.closing(Camera(**given)))


def feed(uri, **more):
    return open_feed("gate", VideoFeed(kind="video", uri=uri, **more))


def test_so_many_frames_are_read_at_the_wanted_rate(camera_of):
    camera = camera_of()
    found = feed(f"rtsp://{camera.address}/live", fps=5, frames=8)
    frames = list(found.frames())
    assert [round(frame.time_s - frames[0].time_s, 1) for frame in frames] == [round(0.2 * n, 1) for n in range(8)]
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[-1].image.mean() > frames[0].image.mean() + 30
    # Each reading is a connection of its own: a live camera shows other frames then.
    assert len(list(found.frames())) == 8


def test_a_password_comes_from_the_environment(camera_of, monkeypatch):
    camera = camera_of(credentials="viewer:s3cret")
    monkeypatch.setenv("GATE_PASSWORD", "s3cret")
    assert len(list(feed(f"rtsp://viewer:${{GATE_PASSWORD}}@{camera.address}/live", frames=2).frames())) == 2
    with pytest.raises(FeedError, match=r"rtsp://127.*cannot be opened") as told:
        feed(f"rtsp://viewer:wr0ng@{camera.address}/live", frames=2)
    assert "wr0ng" not in str(told.value)


def test_a_password_that_is_not_set_is_told_by_its_name():
    with pytest.raises(FeedError, match=r"names \$\{NO_SUCH_PASSWORD\}, which is not set; export it"):
        feed("rtsp://viewer:${NO_SUCH_PASSWORD}@127.0.0.1:1/live", frames=2)


def test_a_stream_that_never_ends_needs_a_number_of_frames():
    with pytest.raises(FeedError, match="never ends; say how many 'frames'"):
        feed("rtsp://127.0.0.1:1/live")


def test_a_camera_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(video, "_PATIENCE_S", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(FeedError, match="cannot be opened as video"),
    ):
        feed(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/live", frames=2)


def test_a_camera_that_goes_silent_is_told(camera_of, monkeypatch):
    monkeypatch.setattr(video, "_PATIENCE_S", 0.5)
    found = feed(f"rtsp://{camera_of(hangs_up=False).address}/live", frames=1000)
    with pytest.raises(FeedError, match=r"breaks off after \d+ frames"):
        list(found.frames())

"""One node's engine as a controller sees it: which failed frames it tells, how long it refuses, what its disk keeps."""

import os
import time

import pytest
import torchvision
from tiny_release import noise, publish_tiny_release, publish_variant

from gemel_ray.engine.engine import Engine
from gemel_ray.serving.assigned_engine import AssignedEngine
from gemel_ray.spec.profile import DeviceProfile, QueryProfile

QUERY = "north_cars"
PATIENCE_S = 60
COSTS = DeviceProfile(
    device="invented",
    estimated=True,
    load_fixed_ms=0.1,
    load_bytes_per_ms=1e6,
    queries={QUERY: QueryProfile(run_ms={1: 5.0, 2: 8.0}, workspace_bytes={1: 2**20, 2: 2**21})},
)
PLAIN, BLANK = noise(1), noise(1) * 0


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def published(tmp_path):
    tiny = publish_tiny_release(tmp_path / "store", (QUERY,))
    return tiny, publish_variant(tiny)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def assigned(published, tmp_path, clock):
    engine = Engine(budget_bytes=1 << 26, device="cpu", threads=1)
    engine.costs.learn(published[0].manifest, COSTS)
    assigned = AssignedEngine(engine, str(tmp_path / "store"), str(tmp_path / "cache"), "box-a", now_s=clock)
    assigned.boot(1, with_all=True, resume=False)
    yield assigned
    assigned.stop()


@pytest.fixture
def picky(monkeypatch):
    """Models that fail for a frame without anything on it."""
    forward = torchvision.models.SqueezeNet.forward

    def picky(model, batch):
        if any(float(image.max()) < 0 for image in batch):
            raise ValueError("there is nothing to see")
        return forward(model, batch)

    monkeypatch.setattr(torchvision.models.SqueezeNet, "forward", picky)


def assign(assigned, release):
    assigned.assign(release, [QUERY])
    until = time.monotonic() + PATIENCE_S
    while assigned.report().busy:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert assigned.report().release == release, assigned.report().refused


def send(assigned, *frames):
    for frame in frames:
        assigned._engine.submit(QUERY, frame, droppable=False).result(PATIENCE_S)


def test_a_frame_that_is_odd_is_not_told_and_more_of_them_are(assigned, picky):
    send(assigned, *[PLAIN] * 8)
    assign(assigned, 2)
    send(assigned, PLAIN, BLANK)
    assert assigned.report().failed_frames == 0
    send(assigned, BLANK)
    assert assigned.report().failed_frames == 2


def test_frames_that_failed_under_the_release_before_too_are_not_told(assigned, picky):
    send(assigned, *[BLANK] * 8, *[PLAIN] * 8)
    assign(assigned, 2)
    send(assigned, *[BLANK, PLAIN] * 4)
    assert assigned.report().failed_frames == 0
    send(assigned, *[BLANK] * 40)
    assert assigned.report().failed_frames == 44


def test_a_release_whose_frames_failed_may_come_back_later_each_time(assigned, clock):
    for holds_s in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        assigned.assign(1, [QUERY], "3 frames failed")
        assert assigned.report().refused == {1: "3 frames failed"}
        clock.now_s += holds_s - 1
        assert assigned.report().refused == {1: "3 frames failed"}
        clock.now_s += 1
        assert assigned.report().refused == {}


def test_blobs_of_releases_that_are_served_no_more_are_deleted(published, assigned, tmp_path):
    releases = [*published]
    for _ in range(3):
        releases.append(publish_variant(releases[-1]))
    for made in releases[1:]:
        assign(assigned, made.manifest.release)
        for path in (tmp_path / "cache").rglob("*.safetensors"):
            os.utime(path, (time.time() - 7200,) * 2)
    held = {path.stem for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert held == {sha for made in releases[-2:] for sha in made.manifest.blobs}

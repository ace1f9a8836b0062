"""Boxes that watch for drift, the frames they are sent, and somebody who takes re-merges."""

import contextlib
import time

from drift_kit import BAD, FRAMES, GOOD, a_workload

from gemel_ray.serving.drift_options import DriftOptions
from gemel_ray.serving.edge_box import EdgeBox
from gemel_ray.serving.options import EdgeOptions, NodeOptions
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.feeds import ImageFolderFeed

NEVER_S = 80_000
WAIT_S = 120
# Every frame that comes is sampled, nearly.
DRIFT = DriftOptions(sample_every_s=1e-3, false_alarm_days=1e-4)


@contextlib.contextmanager
def boxes_on(store, folder):
    """Start boxes on a store, one after the other on one disk."""
    boxes = []

    def make(drift=DRIFT, memory=1 << 26, **more):
        options = EdgeOptions(cache=str(folder / "disk"), poll_every_s=NEVER_S, threads=1, drift=drift)
        node = NodeOptions(memory=memory, device="cpu")
        boxes.append(EdgeBox(str(store), node, options, workload=a_workload(folder), **more))
        boxes[-1].start()
        return boxes[-1]

    try:
        yield make
    finally:
        for box in boxes:
            box.stop()


def feed(box, until, queries=(BAD, GOOD)):
    """Send frames until something is so."""
    end, turn = time.monotonic() + WAIT_S, 0
    while not until():
        assert time.monotonic() < end
        for query in queries:
            box._engine.submit(query, FRAMES[turn % len(FRAMES)], droppable=False).result(60)
        turn += 1


def status_of(client):
    return client.get("/v1/status").json()


def drift_of(client, query):
    return next(found["drift"] for found in status_of(client)["queries"] if found["name"] == query)


class Cluster:
    """What jobs were asked for; refuses as long as it is away."""

    def __init__(self):
        self.jobs, self.is_away = [], True

    def __call__(self, options, folder, arguments):
        if self.is_away:
            raise ServingError("away")
        self.jobs.append((options.address, folder, arguments))
        return f"job-{len(self.jobs)}"


class Frames(list):
    """As many kept frames as a test wants."""

    def feed(self, *, fps):
        return ImageFolderFeed(kind="image_folder", path=str(self.folder / "frames"), fps=fps)

"""A box's thread outlives every error of its engine and its store; where there is no hope, the process ends."""

import shutil
import signal
import socket
import threading

import pytest
from tiny_release import noise, publish_tiny_release

from gemel_ray.serving import edge_care, edge_server
from gemel_ray.serving.edge_box import EdgeBox
from gemel_ray.serving.edge_care import EdgeCare
from gemel_ray.serving.options import EdgeOptions, NodeOptions
from gemel_ray.spec.errors import ServingError

PATIENCE_S = 60
QUERY = "north_cars"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(edge_care, "_LOOK_EVERY_S", 0.01)


@pytest.fixture
def box(tmp_path):
    publish_tiny_release(tmp_path / "store", (QUERY,))
    options = EdgeOptions(cache=str(tmp_path / "disk"), poll_every_s=80_000, threads=1)
    box = EdgeBox(str(tmp_path / "store"), NodeOptions(memory=1 << 26, device="cpu"), options)
    box.start()
    yield box
    box.stop()


def test_an_engine_that_ended_is_started_anew_whatever_error_comes_between(box, monkeypatch):
    start, errors, is_healed = box._engine.start, [RuntimeError("CUDA error"), MemoryError()], threading.Event()

    def as_on_a_device_that_fails_at_first(*args):
        if errors:
            raise errors.pop()
        start(*args)
        is_healed.set()

    monkeypatch.setattr(box._engine, "start", as_on_a_device_that_fails_at_first)
    box._engine.stop()
    assert is_healed.wait(PATIENCE_S)
    assert box._engine.submit(QUERY, noise(1), droppable=False).result(PATIENCE_S).fresh


def test_errors_of_the_drift_watch_are_no_errors_of_the_store(box):
    class Broken:
        def tend(self, manifest):
            raise RuntimeError("deque mutated during iteration")

        def stop(self):
            pass

    box._drift = Broken()
    assert box._has_followed()
    assert box.problem is None


def care_of(heal, follow):
    given_up = threading.Event()
    care = EdgeCare(EdgeOptions(poll_every_s=0.02, poll_most_s=0.05), heal=heal, follow=follow, give_up=given_up.set)
    care.start(0.0)
    return care, given_up


def test_the_store_is_asked_again_after_every_kind_of_error():
    asked = threading.Semaphore(0)

    def follow():
        asked.release()
        raise RuntimeError("whatever")

    care, given_up = care_of(lambda: True, follow)
    for _ in range(5):
        assert asked.acquire(timeout=PATIENCE_S)
    care.end()
    care.join()
    assert not given_up.is_set()


def test_after_so_many_failures_in_a_row_there_is_no_hope():
    looks = []

    def heal():
        looks.append(len(looks))
        # Once in between it works.
        return len(looks) == 6

    _, given_up = care_of(heal, lambda: True)
    assert given_up.wait(PATIENCE_S)
    assert len(looks) == 6 + edge_care._MOST_FAILURES


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_a_process_whose_engine_cannot_be_started_any_more_ends_with_the_reason(tmp_path, monkeypatch):
    publish_tiny_release(tmp_path / "store", (QUERY,))
    boxes = []

    class Shown(EdgeBox):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            boxes.append(self)

    def lose_everything(line):
        shutil.rmtree(tmp_path / "store")
        shutil.rmtree(tmp_path / "disk")
        boxes[0]._engine.stop()

    monkeypatch.setattr(edge_server, "EdgeBox", Shown)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    options = EdgeOptions(cache=str(tmp_path / "disk"), poll_every_s=80_000, threads=1)
    node = NodeOptions(memory=1 << 26, device="cpu")
    try:
        with pytest.raises(ServingError, match=r"the engine could not be started again: .*missing"):
            edge_server.serve_edge(
                str(tmp_path / "store"), node, options, port=free_port(), report=lose_everything
            )  # fmt: skip
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

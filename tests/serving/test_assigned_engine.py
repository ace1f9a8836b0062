"""One node's engine as it boots, under whatever threads its process was given."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_release import publish_tiny_release

from gemel_ray.engine.engine import Engine
from gemel_ray.serving.assigned_engine import AssignedEngine

CARS = ("north_cars", "south_cars")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("assigned") / "store", CARS).store


def booted_on_one_thread(store, cache, threads):
    """As in a process that Ray holds to a single thread, because it books less than one CPU: what it measured."""
    engine = Engine(budget_bytes=1 << 28, device="cpu", threads=threads)
    assigned = AssignedEngine(engine, str(store), str(cache), "box")

    def boot():
        torch.set_num_threads(1)
        assigned.boot(with_all=False, resume=False)
        torch.set_num_threads(1)

    with ThreadPoolExecutor(1) as process:
        process.submit(boot).result()
    assigned.stop()
    (written,) = cache.rglob("costs-box.json")
    return written.read_bytes()


def test_what_was_measured_is_known_at_the_next_start_with_as_many_threads_and_at_no_other(store, tmp_path):
    first = booted_on_one_thread(store, tmp_path, 2)
    assert booted_on_one_thread(store, tmp_path, 2) == first
    assert booted_on_one_thread(store, tmp_path, 3) != first

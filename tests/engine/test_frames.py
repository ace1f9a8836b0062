"""What detectors take as a frame, and what of a batch fails."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_release import publish_tiny_release

from gemel_ray.edge.ledger import Ledger
from gemel_ray.engine.blobs import open_blobs
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.engine import Engine
from gemel_ray.engine.frames import MOST_ELONGATED, check_proportions
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.run import ReleaseRun
from gemel_ray.engine.singly import answered
from gemel_ray.policy.released import released_plans
from gemel_ray.serving.releases import pull_release
from gemel_ray.spec.errors import FrameError
from gemel_ray.spec.profile import DeviceProfile, QueryProfile
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import task_for

WAIT_S = 120
CLASSES = ("background", "car", "person")
# Smaller than anybody sets it.
DETECTOR = ModelSpec(
    architecture="fcos_resnet18_quarter", classes=CLASSES, options={"min_size": 48, "max_size": MOST_ELONGATED}
)


def frame(height, width):
    return np.full((height, width, 3), 128, np.uint8)


@pytest.mark.parametrize(("height", "width"), [(1, MOST_ELONGATED), (50 * MOST_ELONGATED, 50), (1, 1), (1080, 1920)])
def test_a_detector_answers_the_most_elongated_frame_that_is_taken(height, width):
    check_proportions(frame(height, width), DETECTOR)
    model, task = build_model(DETECTOR).eval(), task_for(DETECTOR)
    with torch.inference_mode():
        assert len(task.answers(model(task.prepare([frame(height, width)])), [frame(height, width)])) == 1


@pytest.mark.parametrize(("height", "width"), [(1, MOST_ELONGATED + 1), (2000, 1)])
def test_a_frame_of_which_a_detector_would_see_nothing_is_refused_and_not_by_a_classifier(height, width):
    with pytest.raises(FrameError, match=f"got {height} x {width}; send a part of it"):
        check_proportions(frame(height, width), DETECTOR)
    check_proportions(frame(height, width), ModelSpec(architecture="resnet18", classes=CLASSES))


def test_an_engine_refuses_it_and_counts_no_failed_frame(tmp_path):
    made = publish_tiny_release(tmp_path / "store", ["harbour_boxes"])
    engine = Engine(budget_bytes=2**30, device="cpu", threads=1)
    engine.start(*pull_release(str(made.store), None, str(tmp_path / "cache")))
    try:
        with pytest.raises(FrameError, match="got 2000 x 1"):
            engine.submit("harbour_boxes", frame(2000, 1))
        status = engine.status().queries["harbour_boxes"]
        assert (status.arrived, status.failed) == (0, 0)
    finally:
        engine.stop()


@contextlib.contextmanager
def run_of(made, query):
    """A release's one query, four frames at once, until the block ends."""
    sizes = range(1, 5)
    cost = QueryProfile(run_ms={n: 4.0 + n for n in sizes}, workspace_bytes=dict.fromkeys(sizes, 2**20))
    profile = DeviceProfile(
        device="invented", estimated=True, load_fixed_ms=0.1, load_bytes_per_ms=1e6, queries={query: cost}
    )
    (plan, *_), cpu = released_plans(made.manifest, profile, "ours_released", budget_bytes=2**30), torch.device("cpu")
    planned = replace(
        plan.plan.queries[0], batch_size=4, run_ms=cost.run_ms, workspace_bytes=cost.workspace_bytes, release=0
    )
    blobs = open_blobs(made.manifest, made.path)
    skeletons = build_skeletons(made.manifest, blobs, cpu, allow_factories=True)
    device = TorchDevice(skeletons, blobs, Residence(cpu), Ledger(2**30), threads=1)
    run = ReleaseRun(made.manifest, replace(plan.plan, queries=(planned,)), device)
    try:
        yield run
    finally:
        run.stop()


def test_a_frame_that_fails_its_batch_does_not_cost_its_neighbours_their_answers(release_of, frame_of):
    made = release_of({"cars": "picky_models:picky"})
    blank, wanted = frame(40, 48), made.direct("cars", [frame_of()])[0]
    with run_of(made, "cars") as run:
        asked = [
            (image, run.submit("cars", image, arrived_ms=run.now_ms(), slo_ms=None, droppable=False))
            for image in (frame_of(), blank) * 12
        ]
        for image, future in asked:
            given = future.result(timeout=WAIT_S)
            assert given.reason == ("failed: ValueError: there is nothing to see" if image is blank else None)
            assert image is blank or given.answer.scores == pytest.approx(wanted.scores, abs=1e-5)
        status = run.status().queries["cars"]
    assert (status.answered, status.failed) == (12, 12)


def test_a_batch_whose_frames_all_fail_fails_as_a_whole():
    asked = []

    def ask(images):
        asked.append(len(images))
        raise ValueError(f"of {len(images)}")

    with pytest.raises(ValueError, match="of 3"):
        answered(ask, [frame(8, 8)] * 3)
    assert asked == [3, 1, 1, 1]

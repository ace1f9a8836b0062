"""A running engine goes over to a better plan for the frames it gets; what is served is never wrong meanwhile."""

import logging
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from gemel_ray.edge.recent import RecentTraffic
from gemel_ray.edge.simulation import measure, play
from gemel_ray.edge.traffic import Camera, periodic, spread
from gemel_ray.engine import measuring, reconsidering
from gemel_ray.engine.engine import Engine
from gemel_ray.engine.reconsidering import Question, answered_elsewhere
from gemel_ray.engine.replanning import Replanner
from gemel_ray.policy.released import released_plans
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.profile import DeviceProfile, QueryProfile

FOUR = {"cars": "resnet18", "people": "resnet18", "bikes": "squeezenet1_1", "dogs": "mobilenet_v3_small"}
WORKSPACE_BYTES = 2**21
WAIT_S = 120


@pytest.fixture(scope="module")
def four(tmp_path_factory, release_into):
    return release_into(tmp_path_factory.mktemp("replanned"), FOUR, slo_ms=150)


@pytest.fixture
def budget_bytes(four):
    """Holds the larger models one at a time."""
    return four.bytes_of("cars", "dogs") + WORKSPACE_BYTES


def profile_of(four, load_bytes_per_ms=1e6):
    query = QueryProfile(run_ms={1: 15.0, 2: 20.0}, workspace_bytes={1: WORKSPACE_BYTES // 2, 2: WORKSPACE_BYTES})
    return DeviceProfile(
        device="invented", estimated=True, load_fixed_ms=0.1, load_bytes_per_ms=load_bytes_per_ms,
        queries=dict.fromkeys(four.manifest.queries, query),
    )  # fmt: skip


def worst_of(plan):
    """The same queries, always without what comes next."""
    return replace(plan, eviction="least_recently_used", overlap=False, work_conserving=False)


@pytest.fixture
def question(four, budget_bytes):
    profile = profile_of(four)
    plan = worst_of(released_plans(four.manifest, profile, "ours_released", budget_bytes=budget_bytes)[0].plan)
    frames = periodic([Camera(name, 8, 150, 31.0 * place) for place, name in enumerate(FOUR)], 6_000)
    goodput = measure("", plan, play(plan, frames)).mean_goodput_fraction
    return Question(
        four.manifest, profile, "ours_released", plan, RecentTraffic(frames, goodput, dict.fromkeys(FOUR, 8.0))
    )


def test_a_process_of_its_own_gives_the_same_answer(question):
    found = answered_elsewhere(question)
    assert found == question.answer()
    assert found.plan is not None
    assert found.expected_fraction > found.simulated_fraction


def test_the_process_knows_neither_torch_nor_ray():
    told = "import sys, gemel_ray.engine.reconsidering; print({'torch', 'ray'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_process_that_fails_says_why(question):
    with pytest.raises(ServingError, match=r"no other plan was looked for.*did you mean 'ours_released'"):
        answered_elsewhere(replace(question, policy="ours_release"))


def test_a_process_that_does_not_end_is_ended(question, monkeypatch):
    monkeypatch.setattr(reconsidering, "_TIMEOUT_S", 0.01)
    with pytest.raises(ServingError, match="timed out"):
        answered_elsewhere(question)


def send(engine, frame_of, seconds, fps=8, slo_ms=150.0):
    """Real frames at real speed, all answers."""
    names = list(FOUR)
    streams = {name: [frame_of(seed) for seed in range(int(seconds * fps))] for name in names}
    return engine.replay(streams, spread([Camera(name, fps, slo_ms) for name in names]))


@pytest.fixture
def losing(four, budget_bytes, frame_of, monkeypatch):
    """An engine that follows the worst of plans and has lost frames by it. Simulations are believed, whatever this
    machine is slowed down by meanwhile; loads are simulated as slow enough for a difference."""
    monkeypatch.setattr("gemel_ray.edge.reconsidering._TRUSTED_FRACTION", 1.0)
    monkeypatch.setattr("gemel_ray.engine.replanning.loses_frames", lambda recent: True)
    monkeypatch.setattr("gemel_ray.engine.replanning.answered_elsewhere", lambda question: question.answer())
    engine = Engine(budget_bytes=budget_bytes, device="cpu", threads=1)
    engine.start(four.manifest, four.path, profile_of(four))
    run = engine._running()
    worst = worst_of(run.plan)
    measuring.follow(run, worst, four.manifest.queries)
    run.settle(four.manifest, worst)
    assert engine.reconsider() is None, "nothing has come yet"
    send(engine, frame_of, 4)
    yield engine
    engine.stop()


def test_an_engine_goes_over_to_another_plan_and_answers_as_before(losing, four, frame_of):
    worst = losing.plan
    found = losing.reconsider()
    assert losing.plan is found.plan is not worst
    assert losing.plan.eviction != "least_recently_used" or losing.plan.overlap
    assert losing.plan.budget_bytes == worst.budget_bytes
    assert losing.status().replans == 1
    for name in FOUR:
        given = losing.submit(name, frame_of(5), droppable=False).result(timeout=WAIT_S)
        assert given.fresh
        assert given.answer == four.direct(name, [frame_of(5)])[0]
    status = losing.status()
    assert status.peak_bytes <= status.budget_bytes
    assert losing.reconsider() is None, "too little has come since"


def test_a_rollout_under_way_is_left_alone(losing):
    worst = losing.plan
    with losing._changing():
        assert losing.reconsider() is None
    assert losing.plan is worst


def test_a_plan_that_was_changed_meanwhile_is_not_replaced(losing, monkeypatch):
    run, other = losing._running(), replace(losing.plan, work_conserving=True)

    def answered_late(question):
        run.settle(run.manifest, other)
        return question.answer()

    monkeypatch.setattr("gemel_ray.engine.replanning.answered_elsewhere", answered_late)
    assert losing.reconsider() is None
    assert losing.plan is other


def test_who_answers_everything_is_left_alone(four, frame_of, monkeypatch):
    asked = []
    monkeypatch.setattr("gemel_ray.engine.replanning.answered_elsewhere", asked.append)
    engine = Engine(budget_bytes=10**9, device="cpu", threads=1)
    engine.start(four.manifest, four.path, profile_of(four))
    try:
        # A frame gives way to the next one, which this machine must not come to be late for, whatever runs beside it.
        send(engine, frame_of, 9, fps=1, slo_ms=60_000.0)
        assert engine._running().recent().goodput_fraction == 1
        assert engine.reconsider() is None
    finally:
        engine.stop()
    assert not asked


def test_a_stopped_engine_has_no_plan_to_reconsider():
    with pytest.raises(ServingError, match="stopped"):
        Engine(budget_bytes=1).reconsider()


def test_it_is_asked_again_and_again_and_what_fails_is_logged(caplog):
    asked = threading.Event()
    calls = []

    def fails():
        calls.append(1)
        if len(calls) == 3:
            asked.set()
        raise ServingError("no such luck")

    with caplog.at_level(logging.WARNING):
        replanner = Replanner(fails, 0.001)
        assert asked.wait(WAIT_S)
        replanner.stop()
    assert "the plan is kept: no such luck" in caplog.text

"""The whole engine on real small models: right answers within the budget, and every frame gets one."""

import gc
import threading
import weakref
from concurrent.futures import wait

import numpy as np
import pytest
import torch

from gemel_ray.edge.ledger import Ledger
from gemel_ray.edge.traffic import Camera, spread
from gemel_ray.engine import pauses
from gemel_ray.engine.blobs import open_blobs
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.engine import Engine
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.run import ReleaseRun
from gemel_ray.policy.released import released_plans
from gemel_ray.spec.errors import FrameError, InputError, OverBudgetError, ServingError
from gemel_ray.spec.profile import DeviceProfile, QueryProfile

FOUR = {"cars": "resnet18", "people": "resnet18", "bikes": "squeezenet1_1", "dogs": "mobilenet_v3_small"}
SHARED = [[("cars", "layer4.1.conv2"), ("people", "layer4.1.conv2")], [("cars", "conv1"), ("people", "conv1")]]
WAIT_S = 120
WORKSPACE_BYTES = 2**21


@pytest.fixture(scope="module")
def four(tmp_path_factory, release_into):
    """Four queries, two of which share layers. Tests that spoil its files mend them again."""
    return release_into(tmp_path_factory.mktemp("four"), FOUR, SHARED)


@pytest.fixture
def engine_for(device):
    """Engines that are stopped after the test."""
    started = []

    def start(made, budget_bytes, *, fetch=None):
        engine = Engine(budget_bytes=budget_bytes, device=str(device), threads=1)
        started.append(engine)
        engine.start(made.manifest, fetch or made.path, invented_profile(made))
        return engine

    yield start
    for engine in started:
        engine.stop()


def invented_profile(made):
    """Costs as they might be; tests of budgets and SLOs must not hang on how fast the machine is today."""
    query = QueryProfile(run_ms={1: 5.0, 2: 8.0}, workspace_bytes={1: WORKSPACE_BYTES // 2, 2: WORKSPACE_BYTES})
    return DeviceProfile(
        device="invented",
        estimated=True,
        load_fixed_ms=0.1,
        load_bytes_per_ms=1e6,
        queries={name: query for name in made.manifest.queries},
    )


def room_for(made, *queries):
    """A budget that holds these queries' weights and one workspace, nothing more."""
    return made.bytes_of(*queries) + WORKSPACE_BYTES


def answers_of(futures):
    return [future.result(timeout=WAIT_S) for future in futures]


@pytest.mark.parametrize("held", [("cars",), ("cars", "people"), tuple(FOUR)])
def test_answers_equal_a_direct_forward_pass_whatever_fits(four, frame_of, engine_for, held):
    engine = engine_for(four, room_for(four, *held))
    for frame in (frame_of(0), frame_of(1)):
        answers = answers_of([engine.submit(query, frame, droppable=False) for query in FOUR])
        for query, given in zip(FOUR, answers, strict=True):
            (expected,) = four.direct(query, [frame])
            assert (given.fresh, given.query, given.release) == (True, query, 1)
            assert given.answer.label == expected.label
            assert given.answer.scores == pytest.approx(expected.scores, abs=1e-4)
    status = engine.status()
    assert status.peak_bytes <= status.budget_bytes
    if held == tuple(FOUR):
        assert status.loaded_bytes == four.bytes_of(*FOUR)
    else:
        assert status.loaded_bytes > four.bytes_of(*FOUR)


def test_a_frame_late_for_its_slo_gets_the_last_answer_marked_stale(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars"))
    nothing_yet = engine.submit("cars", frame_of(), slo_ms=1e-6).result(timeout=WAIT_S)
    assert (nothing_yet.fresh, nothing_yet.answer) == (False, None)
    assert nothing_yet.reason == "too late"
    first = engine.submit("cars", frame_of(1), droppable=False).result(timeout=WAIT_S)
    stale = engine.submit("cars", frame_of(2), slo_ms=1e-6).result(timeout=WAIT_S)
    assert first.fresh
    assert not stale.fresh
    assert stale.answer == first.answer
    counts = engine.status().queries["cars"]
    assert (counts.arrived, counts.answered, counts.stale) == (3, 1, 2)
    assert counts.last_reason == "too late"
    assert counts.p50_latency_ms == counts.p95_latency_ms == pytest.approx(first.latency_ms)


def test_a_frame_that_must_not_be_dropped_is_answered_however_late(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars"))
    answers = answers_of([engine.submit("cars", frame_of(s), slo_ms=1e-6, droppable=False) for s in range(4)])
    assert all(answer.fresh for answer in answers)


def test_a_query_that_does_not_fit_alone_is_named_with_its_bytes(four):
    engine = Engine(budget_bytes=four.bytes_of("cars") - 1, device="cpu")
    with pytest.raises(OverBudgetError, match=rf"query 'cars'.*{four.bytes_of('cars')} bytes.*raise the budget"):
        engine.start(four.manifest, four.path)


def test_a_query_whose_workspace_does_not_fit_beside_it_is_refused(four):
    engine = Engine(budget_bytes=four.bytes_of("cars") + 1000, device="cpu")
    with pytest.raises(OverBudgetError, match=r"cars|people"):
        engine.start(four.manifest, four.path, invented_profile(four))


def test_a_damaged_blob_makes_stale_answers_and_the_others_live_on(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, *FOUR))
    remainder = four.path(four.manifest.queries["bikes"].weights[""])
    whole = remainder.read_bytes()
    remainder.write_bytes(whole[:-100])
    failed = engine.submit("bikes", frame_of(), droppable=False).result(timeout=WAIT_S)
    assert not failed.fresh
    assert "CorruptBlobError" in failed.reason
    assert remainder.name in failed.reason
    assert engine.submit("dogs", frame_of(), droppable=False).result(timeout=WAIT_S).fresh
    remainder.write_bytes(whole)
    assert engine.submit("bikes", frame_of(), droppable=False).result(timeout=WAIT_S).fresh


def test_a_blob_that_vanished_is_fetched_anew(four, frame_of, engine_for):
    spoiled = {}

    def fetch(sha):
        if sha in spoiled:
            four.path(sha).write_bytes(spoiled[sha])
        return four.path(sha)

    engine = engine_for(four, room_for(four, *FOUR), fetch=fetch)
    sha = four.manifest.queries["dogs"].weights[""]
    spoiled[sha] = four.path(sha).read_bytes()
    four.path(sha).unlink()
    assert engine.submit("dogs", frame_of(), droppable=False).result(timeout=WAIT_S).fresh


def test_an_unknown_query_is_refused_with_the_nearest_name(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars"))
    with pytest.raises(ServingError, match="no query 'card' is served here; did you mean 'cars'"):
        engine.submit("card", frame_of())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"got float32 of shape \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), r"got uint8 of shape \(8, 8\)"),
        (np.zeros((3, 8, 8), np.uint8), r"got uint8 of shape \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), "got 0 x 8"),
        (np.broadcast_to(np.uint8(0), (9000, 9000, 3)), "got 9000 x 9000"),
        ([[0]], "got list"),
    ],
)
def test_what_is_no_frame_is_refused(four, engine_for, image, message):
    engine = engine_for(four, room_for(four, "cars"))
    with pytest.raises(FrameError, match=message):
        engine.submit("cars", image)


def test_a_flipped_view_is_a_frame_like_any_other(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars"))
    flipped = frame_of()[::-1, :, ::-1]
    given = engine.submit("cars", flipped, droppable=False).result(timeout=WAIT_S)
    assert given.answer.scores == pytest.approx(four.direct("cars", [flipped.copy()])[0].scores, abs=1e-4)


def test_a_stopped_engine_refuses_frames_and_can_be_started_again(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars"))
    profile = invented_profile(four)
    with pytest.raises(ServingError, match="release 1 is being served"):
        engine.start(four.manifest, four.path, profile)
    engine.stop()
    engine.stop()
    with pytest.raises(ServingError, match="stopped"):
        engine.submit("cars", frame_of())
    with pytest.raises(ServingError, match="stopped"):
        engine.status()
    engine.start(four.manifest, four.path, profile)
    assert engine.submit("cars", frame_of(), droppable=False).result(timeout=WAIT_S).fresh


def test_stopping_resolves_every_pending_frame(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars"))
    futures = [engine.submit(query, frame_of(), droppable=seed % 2 == 0) for seed in range(6) for query in FOUR]
    engine.stop()
    assert all(future.done() for future in futures)
    assert all(future.result().fresh or future.result().reason for future in futures)


def test_a_loop_that_fails_resolves_every_frame_and_tells_why(four, frame_of):
    plan = released_plans(four.manifest, invented_profile(four), "ours_released", budget_bytes=10**9)[0].plan
    blobs = open_blobs(four.manifest, four.path)
    skeletons = build_skeletons(four.manifest, blobs, torch.device("cpu"))
    # The device offers less than was planned with, as no sound engine would have it.
    device = TorchDevice(skeletons, blobs, Residence(torch.device("cpu")), Ledger(10))
    run = ReleaseRun(four.manifest, plan, device)
    image = frame_of()
    answer = run.submit("cars", image, arrived_ms=0.0, slo_ms=None, droppable=False).result(timeout=WAIT_S)
    assert not answer.fresh
    assert "OverBudgetError" in answer.reason
    assert run.status().failure in answer.reason
    with pytest.raises(ServingError, match="OverBudgetError"):
        run.submit("cars", image, arrived_ms=0.0, slo_ms=None, droppable=False)
    run.stop()


def test_old_objects_are_set_aside_from_garbage_collection_while_it_serves(four, engine_for, monkeypatch):
    told = []
    monkeypatch.setattr(pauses, "begin", lambda: told.append("begin"))
    monkeypatch.setattr(pauses, "end", lambda: told.append("end"))
    engine = engine_for(four, room_for(four, "cars"))
    assert told == ["begin"]
    engine.stop()
    assert told == ["begin", "end"]


def test_a_frame_whose_caller_gave_up_harms_nobody(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars"))
    futures = [engine.submit("cars", frame_of(seed), droppable=seed % 2 == 0) for seed in range(8)]
    given_up = [future.cancel() for future in futures]
    assert any(given_up)
    assert engine.submit("cars", frame_of(), droppable=False).result(timeout=WAIT_S).fresh


def test_a_frame_whose_caller_gave_up_is_not_computed_and_its_pixels_are_let_go_of(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars"))
    kept, given_up = ([engine.submit("cars", frame_of(), droppable=False) for _ in range(32)] for _ in range(2))
    assert all(future.cancel() for future in given_up)
    assert all(answer.fresh for answer in answers_of(kept))
    assert engine.submit("cars", frame_of(), droppable=False).result(timeout=WAIT_S).fresh
    counts = engine.status().queries["cars"]
    assert (counts.arrived, counts.answered, counts.stale, counts.withdrawn) == (65, 33, 0, 32)
    waiting = engine.waiting("cars")
    assert (waiting.pixel_bytes, waiting.frames) == (0, 0)
    assert waiting.frame_ms > 0


@pytest.mark.parametrize("slo_ms", [float("nan"), float("inf"), 0.0, -1.0])
def test_an_slo_that_is_no_time_is_refused(four, frame_of, engine_for, slo_ms):
    engine = engine_for(four, room_for(four, "cars"))
    with pytest.raises(FrameError, match=f"slo_ms is {slo_ms}; give a finite number of milliseconds above 0"):
        engine.submit("cars", frame_of(), slo_ms=slo_ms)
    assert engine.waiting("cars").pixel_bytes == 0


def test_many_threads_may_ask_at_once(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, "cars", "people"))
    futures, lock = [], threading.Lock()

    def ask(query):
        for seed in range(5):
            future = engine.submit(query, frame_of(seed), droppable=False)
            with lock:
                futures.append((query, seed, future))

    threads = [threading.Thread(target=ask, args=(query,)) for query in (*FOUR, *FOUR)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait([future for _, _, future in futures], timeout=WAIT_S)
    assert len(futures) == 40
    for query, seed, future in futures:
        assert future.result().answer.label == four.direct(query, [frame_of(seed)])[0].label
    assert sum(query.answered for query in engine.status().queries.values()) == 40


def test_pixels_of_answered_frames_are_released(four, engine_for):
    engine = engine_for(four, room_for(four, *FOUR))
    image = np.zeros((32, 32, 3), np.uint8)
    held = weakref.ref(image)
    engine.submit("cars", image, droppable=False).result(timeout=WAIT_S)
    # A second frame takes the place of the first on the lanes.
    engine.submit("cars", np.ones((32, 32, 3), np.uint8), droppable=False).result(timeout=WAIT_S)
    del image
    gc.collect()
    assert held() is None


def test_the_status_tells_weights_and_what_is_shared(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, *FOUR))
    answers_of([engine.submit(query, frame_of(), droppable=False) for query in FOUR])
    status = engine.status()
    shared = (512 * 512 * 9 + 64 * 3 * 49) * 4
    assert status.queries["cars"].weights_bytes == four.bytes_of("cars")
    assert [status.queries[query].shared_bytes for query in FOUR] == [shared, shared, 0, 0]
    assert status.resident_bytes == four.manifest.bytes_after
    assert status.workspace_bytes == engine.kept_bytes
    assert status.loads == len(four.manifest.blobs)
    assert 0 < status.busy_fraction <= 1
    assert status.queries["dogs"].last_answer is not None


def test_a_replay_answers_every_frame_in_order_of_arrival(four, frame_of, engine_for):
    engine = engine_for(four, room_for(four, *FOUR))
    streams = {"cars": [frame_of(seed) for seed in range(6)], "dogs": [frame_of(seed) for seed in range(3)]}
    answers = engine.replay(streams, spread([Camera("cars", 40, 1000), Camera("dogs", 20, 1000)]))
    assert [(a.query, a.frame) for a in answers if a.query == "cars"] == [("cars", index) for index in range(6)]
    assert [(a.query, a.frame) for a in answers if a.query == "dogs"] == [("dogs", index) for index in range(3)]
    assert [a.query for a in answers][:5] == ["cars", "cars", "dogs", "cars", "cars"]
    for answer in answers:
        if answer.fresh:
            assert answer.answer.label == four.direct(answer.query, [frame_of(answer.frame)])[0].label
    assert any(answer.fresh for answer in answers)


def test_a_profile_that_lacks_a_query_is_refused(four):
    whole = invented_profile(four)
    lacking = whole.model_copy(update={"queries": {"cars": whole.queries["cars"]}})
    with pytest.raises(ServingError, match="lacks query 'people'"):
        Engine(budget_bytes=10**9, device="cpu").start(four.manifest, four.path, lacking)


def test_an_engine_measures_its_own_profile_when_given_none(release_of, frame_of):
    made = release_of({"q": "squeezenet1_1"})
    engine = Engine(budget_bytes=10**9, device="cpu")
    engine.start(made.manifest, made.path)
    try:
        assert engine.submit("q", frame_of(), droppable=False).result(timeout=WAIT_S).fresh
    finally:
        engine.stop()


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InputError, match=name):
        Engine(budget_bytes=1, device=name)


def test_auto_takes_cuda_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert Engine(budget_bytes=1).device.type == expected


@pytest.mark.parametrize("policy", ["model_lru", "time_space", "ours_released"])
def test_every_policy_answers_right_and_within_the_budget(four, frame_of, device, policy):
    budget_bytes = room_for(four, "cars")
    engine = Engine(budget_bytes=budget_bytes, device=str(device), threads=1, policy=policy)
    engine.start(four.manifest, four.path, invented_profile(four))
    try:
        answers = answers_of([engine.submit(query, frame_of(0), droppable=False) for query in FOUR])
        assert engine.status().peak_bytes <= budget_bytes
    finally:
        engine.stop()
    for query, given in zip(FOUR, answers, strict=True):
        (expected,) = four.direct(query, [frame_of(0)])
        assert given.answer.label == expected.label


def test_a_layer_that_repeats_within_one_model_is_held_once_and_answers_stay_right(
    tmp_path, release_into, frame_of, engine_for
):
    repeats = [[("cars", "layer4.1.conv1"), ("cars", "layer4.1.conv2"), ("cars", "layer4.0.conv2")]]
    made = release_into(tmp_path, {"cars": "resnet18"}, repeats)
    engine = engine_for(made, room_for(made, "cars"))
    (given,) = answers_of([engine.submit("cars", frame_of(0), droppable=False)])
    (expected,) = made.direct("cars", [frame_of(0)])
    assert given.answer.scores == pytest.approx(expected.scores, abs=1e-5)
    # A state dict names the tied weight once for each place.
    written_out_bytes = sum(tensor.nbytes for tensor in made.models["cars"].state_dict().values())
    assert engine.status().resident_bytes == written_out_bytes - 2 * 512 * 512 * 3 * 3 * 4


def test_a_policy_that_does_not_exist_is_told():
    with pytest.raises(InputError, match="no policy 'our'; did you mean 'ours'"):
        Engine(budget_bytes=1, device="cpu", policy="our")

"""The scheduler: whose turn it is, what is loaded meanwhile, which frames go."""

from dataclasses import replace

import pytest
from edge_plans import camera_frame, kept, plan_of, plans, query_of, traffic
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.policy.eviction import EVICTIONS
from gemel_ray.spec.actions import Answered, Arrived, Done, Dropped, Evict, Infer, Load, Stopped
from gemel_ray.spec.errors import OverBudgetError, ServingError

AB = {"a": 10, "b": 10}


def two_queries(*, budget_bytes, **options):
    return plan_of(query_of("qa", "a"), query_of("qb", "b"), weight_bytes=AB, budget_bytes=budget_bytes, **options)


def play(plan, frames, *, costs=None, failure_of=lambda action: None, **options):
    """Serve the frames on the simulated device."""
    trace = Trace(SimulatedDevice(costs or plan, frames, failure_of=failure_of))
    run(Scheduler(replace(plan, **options)), trace, trace.hear)
    return trace


def of_type(trace, *types):
    return [action for _, action in trace.started if isinstance(action, types)]


def reasons(trace):
    return {v.frame.frame: v.reason if isinstance(v, Dropped) else "answered" for v in trace.verdicts}


def test_a_frame_is_answered_once_its_weights_have_arrived():
    scheduler = Scheduler(two_queries(budget_bytes=20))
    frame = kept("qa", 0)
    load = Load("a", 10, 5.0)
    assert scheduler.handle(Arrived(frame, 0.0)) == [load]
    (infer,) = scheduler.handle(Done(load, 5.0, 5.0))
    assert infer == Infer("qa", (0,), 0, 10.0)
    assert scheduler.take_verdicts() == []
    assert scheduler.handle(Done(infer, 15.0, 10.0)) == []
    assert scheduler.take_verdicts() == [Answered(frame, 15.0)]
    assert scheduler.take_verdicts() == []


def test_without_frames_nothing_is_done():
    scheduler = Scheduler(two_queries(budget_bytes=20))
    assert scheduler.handle(Stopped(0.0)) == []
    assert scheduler.take_verdicts() == []


def test_a_frame_of_an_unknown_query_is_refused_with_the_nearest_known_one():
    with pytest.raises(ServingError, match="did you mean 'qa'"):
        Scheduler(two_queries(budget_bytes=20)).handle(Arrived(kept("qaa", 0), 0.0))


def test_a_query_too_big_for_the_budget_is_refused_with_the_numbers():
    with pytest.raises(OverBudgetError, match="'qa' needs 13 bytes at batch size 1, the budget is 12"):
        Scheduler(plan_of(query_of("qa", "a", workspace_bytes=3), weight_bytes=AB, budget_bytes=12))


def test_a_plan_that_lacks_a_weights_bytes_is_refused():
    with pytest.raises(ServingError, match="'qa'"):
        Scheduler(plan_of(query_of("qa", "elsewhere"), weight_bytes=AB, budget_bytes=12))


def test_an_unknown_eviction_policy_is_refused_with_the_nearest_known_one():
    with pytest.raises(ServingError, match="least_recently_used"):
        Scheduler(replace(two_queries(budget_bytes=20), eviction="least_recent"))


def test_turns_go_round_in_the_order_of_the_plan():
    frames = [kept(query, number) for number, query in enumerate(["qb", "qb", "qa", "qa"])]
    turns = [infer.query for infer in of_type(play(two_queries(budget_bytes=20), frames), Infer)]
    # Turn about; qb's frame came first, so it begins.
    assert turns == ["qb", "qa", "qb", "qa"]


def test_queries_with_nothing_pending_are_skipped():
    plan = plan_of(*(query_of(name, "a") for name in "xyz"), weight_bytes=AB, budget_bytes=10)
    frames = [kept("x", 0), kept("z", 1), kept("x", 2), kept("z", 3)]
    assert [infer.query for infer in of_type(play(plan, frames), Infer)] == ["x", "z", "x", "z"]


def test_a_query_whose_weights_are_there_is_not_passed_over_when_its_frame_comes_while_another_is_prepared():
    plan = plan_of(
        query_of("x", "a"), query_of("y", "a"), query_of("z", "b"), weight_bytes=AB, budget_bytes=20, load_ms=2
    )
    frames = [kept("x", 0), kept("z", 1, arrived_ms=3), kept("y", 2, arrived_ms=4)]
    assert [infer.query for infer in of_type(play(plan, frames), Infer)] == ["x", "y", "z"]


def test_the_next_turns_weights_load_while_this_one_computes():
    trace = play(two_queries(budget_bytes=20), [kept("qa", 0), kept("qb", 1)])
    started = [(at, type(action).__name__) for at, action in trace.started]
    assert started == [(0.0, "Load"), (5.0, "Infer"), (5.0, "Load"), (15.0, "Infer")]


def test_without_overlap_nothing_loads_while_a_turn_computes():
    trace = play(two_queries(budget_bytes=20, overlap=False), [kept("qa", 0), kept("qb", 1)])
    started = [(at, type(action).__name__) for at, action in trace.started]
    assert started == [(0.0, "Load"), (5.0, "Infer"), (15.0, "Load"), (20.0, "Infer")]


def test_what_does_not_fit_beside_the_running_turn_is_loaded_after_it():
    plan = plan_of(
        query_of("qa", "a"), query_of("qb", "b1", "b2"), weight_bytes={"a": 10, "b1": 6, "b2": 6}, budget_bytes=16
    )
    trace = play(plan, [kept("qa", 0), kept("qb", 1)])
    assert [(at, action.weight) for at, action in trace.started if not isinstance(action, Infer)] == [
        (0.0, "a"),
        (5.0, "b1"),
        (15.0, "a"),
        (15.0, "b2"),
    ]
    assert of_type(trace, Evict) == [Evict("a")]


def test_shared_weights_are_loaded_once():
    plan = plan_of(
        query_of("x", "shared", "a"),
        query_of("y", "shared", "b"),
        weight_bytes=AB | {"shared": 50},
        budget_bytes=60,
    )
    frames = [kept(query, number) for number, query in enumerate("xyxy")]
    loads = [load.weight for load in of_type(play(plan, frames), Load)]
    assert sorted(loads) == ["a", "a", "b", "b", "shared"]


def test_of_several_camera_frames_the_newest_are_answered():
    plan = plan_of(query_of("qa", "a", batch=2), weight_bytes=AB, budget_bytes=10, load_ms=50)
    trace = play(plan, [camera_frame("qa", number, arrived_ms=number) for number in range(5)])
    assert reasons(trace) == {0: "newer frame", 1: "newer frame", 2: "newer frame", 3: "answered", 4: "answered"}


def test_frames_that_may_not_be_dropped_are_answered_in_order_of_arrival_before_camera_frames():
    plan = plan_of(query_of("qa", "a", batch=2), weight_bytes=AB, budget_bytes=10)
    trace = play(plan, [camera_frame("qa", 0), kept("qa", 1, 1.0), kept("qa", 2, 2.0), kept("qa", 3, 3.0)])
    assert [infer.frames for infer in of_type(trace, Infer)] == [(1, 2), (3, 0)]


def test_a_frame_that_cannot_be_in_time_any_more_is_dropped_before_its_weights_arrive():
    plan = plan_of(query_of("qa", "a"), weight_bytes=AB, budget_bytes=10, load_ms=95)
    trace = play(plan, [camera_frame("qa", 0, slo_ms=100)])
    assert trace.verdicts == [Dropped(camera_frame("qa", 0, slo_ms=100), 0.0, "too late")]


def test_a_batch_is_only_as_large_as_its_deadlines_allow():
    plan = plan_of(query_of("qa", "a", batch=2, run_ms=10), weight_bytes=AB, budget_bytes=10, load_ms=0)
    # One frame takes 10 ms, two take 15.
    trace = play(plan, [kept("qa", 0), camera_frame("qa", 1, 0.0, slo_ms=12), camera_frame("qa", 2, 1.0, slo_ms=22)])
    assert [infer.frames for infer in of_type(trace, Infer)] == [(0,), (2,)]
    assert reasons(trace)[1] == "too late"


def test_a_query_whose_load_takes_longer_than_its_slo_still_answers_frames_that_come_while_it_loads():
    plan = plan_of(query_of("qa", "a"), weight_bytes=AB, budget_bytes=10, load_ms=150)
    trace = play(plan, [camera_frame("qa", 0), camera_frame("qa", 1, arrived_ms=100)])
    assert reasons(trace) == {0: "too late", 1: "answered"}


def test_a_turn_whose_frames_have_all_gone_late_gives_way_to_the_next():
    plan = two_queries(budget_bytes=10, load_ms=150)
    trace = play(plan, [camera_frame("qa", 0), kept("qb", 1)])
    assert reasons(trace) == {0: "too late", 1: "answered"}


def test_a_load_that_fails_once_is_tried_again():
    failures = iter(["no such file"])
    trace = play(two_queries(budget_bytes=20), [kept("qa", 0)], failure_of=lambda action: next(failures, None))
    assert reasons(trace) == {0: "answered"}
    assert [load.weight for load in of_type(trace, Load)] == ["a", "a"]


def test_a_load_that_fails_twice_drops_its_querys_frames_and_nobody_elses():
    def failure_of(action):
        return "bad blob" if isinstance(action, Load) and action.weight == "a" else None

    trace = play(
        two_queries(budget_bytes=20), [kept("qa", 0), kept("qb", 1), kept("qa", 2, 500.0)], failure_of=failure_of
    )
    assert reasons(trace) == {
        0: "failed: weights a did not load: bad blob",
        1: "answered",
        2: "failed: weights a did not load: bad blob",
    }


def test_an_inference_that_fails_drops_its_batch_and_the_next_one_goes_on():
    failures = iter(["out of memory"])
    trace = play(
        two_queries(budget_bytes=20),
        [kept("qa", 0), kept("qa", 1)],
        failure_of=lambda action: next(failures, None) if isinstance(action, Infer) else None,
    )
    assert reasons(trace) == {0: "failed: out of memory", 1: "answered"}


def test_an_end_of_what_was_never_started_is_refused():
    scheduler = Scheduler(two_queries(budget_bytes=20))
    with pytest.raises(ServingError, match="never started"):
        scheduler.handle(Done(Infer("qa", (0,), 0, 10.0), 0.0, 0.0))
    with pytest.raises(ServingError, match="never started"):
        scheduler.handle(Done(Load("a", 10, 5.0), 0.0, 0.0))


def loaded_bytes(eviction):
    """Three equal models, two fit, five rounds of frames that are never dropped.

    Nothing is loaded ahead: a load that hides behind an inference costs no time, whatever it pushes out.
    """
    weight_bytes = {"a": 10, "b": 10, "c": 10}
    plan = plan_of(*(query_of(f"q{w}", w) for w in "abc"), weight_bytes=weight_bytes, budget_bytes=20, overlap=False)
    frames = [kept(f"q{w}", 3 * turn + place) for turn in range(5) for place, w in enumerate("abc")]
    return sum(load.bytes for load in of_type(play(plan, frames, eviction=eviction), Load))


def test_knowing_the_order_moves_fewer_bytes_than_evicting_the_least_recently_used():
    # Least recently used evicts just what comes next, so each of the 15 turns loads its model.
    assert loaded_bytes("least_recently_used") == 150
    assert loaded_bytes("furthest_next_use") < 100


@given(st.data(), st.sampled_from(sorted(EVICTIONS)))
def test_every_frame_gets_one_verdict_and_what_may_not_be_dropped_is_answered(data, eviction):
    plan = data.draw(plans())
    frames = data.draw(traffic(plan))
    trace = play(plan, frames, eviction=eviction, work_conserving=data.draw(st.booleans()))
    assert sorted(verdict.frame.frame for verdict in trace.verdicts) == [frame.frame for frame in frames]
    for verdict in trace.verdicts:
        assert isinstance(verdict, Answered) or verdict.frame.droppable


@given(st.data())
def test_predictions_that_hold_make_every_answer_to_a_camera_frame_come_in_time(data):
    plan = data.draw(plans())
    trace = play(plan, data.draw(traffic(plan)))
    for verdict in trace.verdicts:
        if isinstance(verdict, Answered) and verdict.frame.droppable:
            assert verdict.now_ms <= verdict.frame.deadline_ms + 1e-6


@given(st.data())
def test_whatever_fails_every_frame_gets_one_verdict(data):
    plan = data.draw(plans())
    frames = data.draw(traffic(plan))
    failing = data.draw(st.lists(st.booleans(), max_size=20))
    failures = iter(failing)
    trace = play(plan, frames, failure_of=lambda action: "broken" if next(failures, False) else None)
    assert sorted(verdict.frame.frame for verdict in trace.verdicts) == [frame.frame for frame in frames]
    for verdict in trace.verdicts:
        if isinstance(verdict, Dropped) and not verdict.frame.droppable:
            assert verdict.reason.startswith("failed: ")


def three_queries(**options):
    return plan_of(
        *(query_of(f"q{w}", w) for w in "abc"), weight_bytes=dict.fromkeys("abc", 10), **{"budget_bytes": 20, **options}
    )


def infers_of(trace):
    return [(at, action.query) for at, action in trace.started if isinstance(action, Infer)]


def test_a_ready_query_computes_out_of_turn_while_nothing_else_can():
    # qb's weights take 40 ms to load; qa's are there, and a frame of qa comes meanwhile.
    plan = two_queries(budget_bytes=20, load_ms=40)
    frames = [kept("qa", 0), kept("qb", 1, arrived_ms=60), kept("qa", 2, arrived_ms=65)]
    assert infers_of(play(plan, frames)) == [(40.0, "qa"), (65.0, "qa"), (100.0, "qb")]
    strict = play(plan, frames, work_conserving=False)
    assert infers_of(strict) == [(40.0, "qa"), (100.0, "qb"), (110.0, "qa")]


def test_nobody_computes_out_of_turn_who_would_keep_the_turn_waiting():
    plan = two_queries(budget_bytes=20, load_ms=8)
    frames = [kept("qa", 0), kept("qb", 1, arrived_ms=20), kept("qa", 2, arrived_ms=21)]
    assert infers_of(play(plan, frames)) == [(8.0, "qa"), (28.0, "qb"), (38.0, "qa")]


def test_while_the_next_query_is_ready_the_one_after_it_is_loaded():
    # All three fit. qa computes from 5 to 15; qb is there by 10, so that qc loads until 15 and not only from then on.
    plan = three_queries(budget_bytes=30)
    frames = [kept("qa", 0), kept("qb", 1), kept("qc", 2)]
    loads = [(at, action.weight) for at, action in play(plan, frames).started if isinstance(action, Load)]
    assert loads == [(0.0, "a"), (5.0, "b"), (10.0, "c")]
    strict = play(plan, frames, work_conserving=False)
    assert [at for at, action in strict.started if isinstance(action, Load)] == [0.0, 5.0, 15.0]


def test_what_a_ready_query_needs_is_not_given_away_before_its_turn():
    # Two of three fit: beside qa, which computes, and qb, which is ready, there is no room for qc.
    trace = play(three_queries(), [kept("qa", 0), kept("qb", 1), kept("qc", 2)])
    assert [infer for _, infer in infers_of(trace)] == ["qa", "qb", "qc"]
    assert len(of_type(trace, Load)) == 3
    assert of_type(trace, Evict) == [Evict("a")]


def test_a_query_that_will_have_no_frame_in_time_once_loaded_is_passed_over():
    # One of three fits. qb's camera sends every 200 ms and is to be answered within 60, of which loading takes 50: at
    # 455 ms, when qa is done, its frame of 400 ms is lost and the next one far away, while qc's waits.
    plan = three_queries(budget_bytes=10, load_ms=50)
    cameras = [camera_frame("qb", number, arrived_ms=200.0 * number, slo_ms=60) for number in range(3)]
    frames = [*cameras, kept("qa", 3, arrived_ms=395.0), kept("qc", 4, arrived_ms=410.0)]
    assert (505.0, "qc") in infers_of(play(plan, frames))
    assert (555.0, "qc") in infers_of(play(plan, frames, work_conserving=False))


def test_a_query_whose_frames_always_come_at_the_wrong_time_goes_first_at_last():
    # A round of qa and qb takes 60 ms. A frame of qc comes just after its turn and is late before the next.
    plan = plan_of(
        *(query_of(name, "a", run_ms=run_ms) for name, run_ms in (("qa", 30), ("qb", 30), ("qc", 5))),
        weight_bytes=AB,
        budget_bytes=10,
        load_ms=0,
    )
    busy = [kept(name, 2 * turn + place) for turn in range(20) for place, name in enumerate(["qa", "qb"])]
    unlucky = [camera_frame("qc", 100 + turn, arrived_ms=60.0 * turn + 1, slo_ms=35) for turn in range(19)]

    def answered(**options):
        told = reasons(play(plan, [*busy, *unlucky], **options))
        return sum(told[frame.frame] == "answered" for frame in unlucky)

    assert answered() > answered(work_conserving=False) == 0


@given(st.data())
def test_a_query_is_answered_after_at_most_one_turn_of_each_other_query(data):
    """Nobody starves: with everything pending from the start, turns go round strictly."""
    plan = data.draw(plans())
    rounds = data.draw(st.integers(1, 3))
    names = [query.name for query in plan.queries]
    batch = {query.name: query.batch_size for query in plan.queries}
    asked = [name for name in names for _ in range(rounds * batch[name])]
    frames = [kept(name, number) for number, name in enumerate(asked)]
    turns = [infer.query for infer in of_type(play(plan, frames, work_conserving=False), Infer)]
    # The very first frame is served as soon as it is heard of; from then on everything is pending.
    for start in range(1, len(turns) - len(names)):
        assert sorted(turns[start : start + len(names)]) == sorted(names)

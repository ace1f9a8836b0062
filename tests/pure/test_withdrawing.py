"""Frames whose callers have given up: not computed any more, and told as such once."""

import time
from dataclasses import replace

import pytest
from edge_plans import camera_frame, kept, plan_of, plans, query_of, traffic
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.edge.loop import run
from gemel_ray.edge.pending import PendingFrames
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.spec.actions import Answered, Arrived, Dropped, Infer, Load, Replanned, Stopped, Withdrawn
from gemel_ray.spec.errors import ServingError

ONE = plan_of(query_of("qa", "a", batch=2), weight_bytes={"a": 10}, budget_bytes=10)


def play(plan, frames, withdrawals, *, failure_of=lambda action: None, **options):
    """Serve the frames on the simulated device, some of which nobody waits for from some moment on."""
    trace = Trace(SimulatedDevice(plan, frames, failure_of=failure_of, withdrawals=withdrawals))
    run(Scheduler(replace(plan, **options)), trace, trace.hear)
    return trace


def computed(trace):
    return [infer.frames for _, infer in trace.started if isinstance(infer, Infer)]


def test_a_frame_that_was_withdrawn_gives_its_place_to_the_next():
    frames = [kept("qa", number) for number in range(4)]
    trace = play(ONE, frames, [Withdrawn(frames[1], 1.0)])
    assert computed(trace) == [(0, 2), (3,)]
    assert [verdict for verdict in trace.verdicts if isinstance(verdict, Dropped)] == [
        Dropped(frames[1], 1.0, "withdrawn")
    ]


def test_what_computes_already_is_answered_all_the_same():
    frames = [kept("qa", 0), kept("qa", 1)]
    # From 5 to 20 ms.
    trace = play(ONE, frames, [Withdrawn(frames[1], 10.0), Withdrawn(frames[0], 30.0)])
    assert trace.verdicts == [Answered(frames[0], 20.0), Answered(frames[1], 20.0)]


def test_a_camera_frame_may_be_withdrawn_as_well():
    trace = play(ONE, [camera_frame("qa", 0)], [Withdrawn(camera_frame("qa", 0), 2.0)])
    assert trace.verdicts == [Dropped(camera_frame("qa", 0), 2.0, "withdrawn")]
    assert computed(trace) == []


def test_a_query_of_which_all_is_withdrawn_leaves_the_turn_to_the_next():
    plan = plan_of(query_of("qa", "a"), query_of("qb", "b"), weight_bytes={"a": 10, "b": 10}, budget_bytes=10)
    for is_work_conserving in (True, False):
        frames = [kept("qa", 0), kept("qb", 1, arrived_ms=1.0)]
        trace = play(plan, frames, [Withdrawn(frames[0], 2.0)], work_conserving=is_work_conserving)
        assert computed(trace) == [(1,)]
        assert len(trace.verdicts) == 2


def test_a_frame_of_a_query_that_is_gone_has_had_its_verdict():
    scheduler, frame = Scheduler(ONE), kept("qa", 0)
    scheduler.handle(Arrived(frame, 0.0))
    scheduler.handle(Replanned(plan_of(query_of("qb", "b"), weight_bytes={"b": 10}, budget_bytes=10), 1.0))
    assert len(scheduler.take_verdicts()) == 1
    scheduler.handle(Withdrawn(frame, 2.0))
    assert scheduler.take_verdicts() == []


@given(st.data())
def test_every_frame_gets_one_verdict_whoever_gives_up_and_whatever_fails(data):
    plan = data.draw(plans())
    frames = data.draw(traffic(plan))
    given_up = data.draw(st.lists(st.sampled_from(frames), unique=True)) if frames else []
    withdrawals = [Withdrawn(frame, data.draw(st.floats(0, 400))) for frame in given_up]
    failures = iter(data.draw(st.lists(st.booleans(), max_size=20)))
    trace = play(
        plan,
        frames,
        withdrawals,
        failure_of=lambda action: "broken" if next(failures, False) else None,
        work_conserving=data.draw(st.booleans()),
    )
    assert sorted(verdict.frame.frame for verdict in trace.verdicts) == [frame.frame for frame in frames]
    at_ms = {event.frame: event.now_ms for event in withdrawals}
    for verdict in trace.verdicts:
        if isinstance(verdict, Dropped) and verdict.reason == "withdrawn":
            assert verdict.now_ms == at_ms[verdict.frame]
        elif isinstance(verdict, Dropped) and not verdict.frame.droppable:
            assert verdict.reason.startswith("failed: ")
    begun_ms = {frame: ms for ms, infer in trace.started if isinstance(infer, Infer) for frame in infer.frames}
    withdrawn = {v.frame.frame: v.now_ms for v in trace.verdicts if isinstance(v, Dropped) and v.reason == "withdrawn"}
    assert all(begun_ms.get(frame, 0.0) <= ms for frame, ms in withdrawn.items())


def test_a_turn_takes_no_longer_for_thousands_of_frames_that_wait():
    def turns_s(waiting):
        pending = PendingFrames(query_of("qa", "a", batch=8))
        for number in range(waiting):
            pending.add(kept("qa", number))
        begun_s = time.process_time()
        for turn in range(100):
            pending.take(pending.choose(0.0))
            pending.withdraw(kept("qa", waiting - 1 - turn))
        return time.process_time() - begun_s

    # Walking along all of them would take a thousand times as long.
    assert turns_s(200_000) < 100 * max(turns_s(1_000), 1e-3)


def test_a_load_of_no_time_that_fails_for_ever_ends_a_simulation_instead_of_going_on_for_ever():
    plan = plan_of(query_of("qa", "a"), weight_bytes={"a": 10}, budget_bytes=10, load_ms=0)
    device = SimulatedDevice(plan, [], failure_of=lambda action: "broken")
    assert isinstance(device.next_event(), Stopped)

    def try_for_ever():
        while True:
            device.start(Load("a", 10, 0.0))
            device.next_event()

    with pytest.raises(ServingError, match=r"stands still at 0\.0 ms.*Load\(weight='a'"):
        try_for_ever()

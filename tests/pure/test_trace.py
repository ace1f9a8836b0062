"""The trace: all that passes between a scheduler and a device, and nothing that was refused."""

import pytest
from edge_plans import kept, plan_of, plans, query_of, traffic
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.spec.actions import Arrived, Evict, Infer, Load, Stopped


def test_a_trace_holds_the_story_of_one_frame():
    plan = plan_of(query_of("q", "a"), weight_bytes={"a": 10}, budget_bytes=10)
    frame = kept("q", 0, 2.0)
    trace = Trace(SimulatedDevice(plan, [frame]))
    run(Scheduler(plan), trace, trace.hear)
    load, infer = Load("a", 10, 5.0), Infer("q", (0,), 0, 10.0)
    assert trace.started == [(2.0, load), (7.0, infer)]
    assert [(done.action, done.now_ms, done.took_ms) for done in trace.done] == [(load, 7.0, 5.0), (infer, 17.0, 10.0)]
    assert trace.arrivals == [Arrived(frame, 2.0)]
    assert [type(event) for event in trace.events[:2]] == [Arrived, Stopped]
    assert [verdict.now_ms for verdict in trace.verdicts] == [17.0]
    assert (trace.budget_bytes, trace.now_ms()) == (10, 17.0)


def test_what_the_device_refuses_is_not_written_down():
    plan = plan_of(query_of("q", "a"), weight_bytes={"a": 10}, budget_bytes=10)
    trace = Trace(SimulatedDevice(plan, []))
    with pytest.raises(ValueError, match="resident"):
        trace.start(Evict("a"))
    assert trace.started == []


@given(st.data())
def test_listening_changes_nothing(data):
    plan = data.draw(plans())
    frames = data.draw(traffic(plan))
    heard = []
    run(Scheduler(plan), SimulatedDevice(plan, frames), heard.append)
    trace = Trace(SimulatedDevice(plan, frames))
    run(Scheduler(plan), trace, trace.hear)
    assert trace.verdicts == heard


@given(st.data())
def test_every_load_and_inference_that_starts_also_ends(data):
    plan = data.draw(plans())
    trace = Trace(SimulatedDevice(plan, data.draw(traffic(plan))))
    run(Scheduler(plan), trace, trace.hear)
    started = [action for _, action in trace.started if not isinstance(action, Evict)]
    assert sorted(map(repr, started)) == sorted(repr(done.action) for done in trace.done)

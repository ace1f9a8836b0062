"""Loading and computing that share cores slow each other down, on the simulated device as its profile says."""

from dataclasses import replace

import pytest
from edge_plans import plan_of, plans, query_of, traffic
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.policy.planning import ServedQuery, plan_queries
from gemel_ray.spec.actions import Done, Infer, Load
from gemel_ray.spec.plan import Contention
from gemel_ray.spec.profile import DeviceProfile, QueryProfile


def ends_of(contention, *actions, resident=("a",), needed_after=None):
    """When each of these ends, all started at once after `a` was loaded; a run takes 10 ms and a load 5."""
    query = replace(query_of("q", *resident), needed_after=needed_after or {})
    plan = plan_of(query, weight_bytes={"a": 1, "b": 1, "c": 1}, budget_bytes=10)
    device = SimulatedDevice(replace(plan, contention=contention), [])
    device.start(Load("a", 1, 5.0))
    while not isinstance(device.next_event(), Done):
        pass
    begun_ms = device.now_ms()
    for action in actions:
        device.start(action)
    ends = {}
    while (event := device.next_event()) is not None:
        ends[getattr(event.action, "weight", "q")] = event.now_ms - begun_ms
    return ends


INFER, LOAD_B, LOAD_C = Infer("q", (0,), 0, 10.0), Load("b", 1, 5.0), Load("c", 1, 5.0)


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ((INFER,), {"q": 10.0}),
        ((LOAD_B,), {"b": 5.0}),
        # The load ends at 1.5 x 5; by then half of 7.5 ms of the run are done, and the rest goes at full speed.
        ((INFER, LOAD_B), {"q": 13.75, "b": 7.5}),
        ((LOAD_B, INFER), {"q": 13.75, "b": 7.5}),
        # The second load is slowed down until the run ends at 17.5, having done 10/1.5 ms of its 10 ms with the first.
        ((INFER, LOAD_B, LOAD_C), {"b": 7.5, "c": 15.0, "q": 17.5}),
    ],
)
def test_what_overlaps_takes_longer_for_as_long_as_it_overlaps(actions, expected):
    assert ends_of(Contention(2.0, 1.5), *actions) == pytest.approx(expected)


def test_a_run_that_waits_for_a_weight_ends_after_it_has_come_late():
    """The load takes 7.5 ms instead of 5; half of the run is left then, and goes at full speed."""
    found = ends_of(Contention(1.0, 1.5), LOAD_B, INFER, resident=("a", "b"), needed_after={"b": 0.5})
    assert found == pytest.approx({"b": 7.5, "q": 12.5})


@given(st.data(), st.floats(1, 4), st.floats(1, 4))
def test_nothing_is_faster_than_alone_or_slower_than_all_the_time_beside_the_other(data, run_slowdown, load_slowdown):
    plan = data.draw(plans())
    frames = data.draw(traffic(plan))
    trace = Trace(SimulatedDevice(replace(plan, contention=Contention(run_slowdown, load_slowdown)), frames))
    run(Scheduler(plan), trace, trace.hear)
    assert len(trace.verdicts) == len(frames)
    for done in trace.done:
        alone_ms = done.action.predicted_ms
        assert done.took_ms >= alone_ms - 1e-6
        if isinstance(done.action, Load):
            assert done.took_ms <= alone_ms * load_slowdown + 1e-6


def test_a_plan_takes_the_contention_of_its_profile():
    costs = QueryProfile(run_ms={1: 5.0}, workspace_bytes={1: 10})
    profile = DeviceProfile(
        device="invented", estimated=False, load_fixed_ms=0, load_bytes_per_ms=1, queries={"q": costs},
        run_slowdown=1.3, load_slowdown=1.7,
    )  # fmt: skip
    plan = plan_queries({"q": ServedQuery(("a",), 10, 100)}, {"a": 20}, profile, budget_bytes=100)
    assert plan.contention == Contention(1.3, 1.7)

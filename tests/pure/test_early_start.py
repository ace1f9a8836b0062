"""Starting a query before its last weights have arrived."""

from dataclasses import replace

from edge_plans import kept, plan_of, query_of

from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.spec.actions import Answered, Dropped, Infer, Load

BYTES = {"first": 10, "last": 10}


def plan_with(needed_after, *others, weight_bytes=BYTES, budget_bytes=100, **options):
    """One query that computes for 10 ms with two weights, each of which takes 5 ms to load."""
    query = replace(query_of("q", "first", "last", run_ms=10.0), needed_after=needed_after)
    return plan_of(query, *others, weight_bytes=weight_bytes, budget_bytes=budget_bytes, **options)


def played(plan, frames, costs=None, **options):
    trace = Trace(SimulatedDevice(costs or plan, frames, **options))
    run(Scheduler(plan), trace, trace.hear)
    return trace


def started_ms(trace, query="q"):
    return [at_ms for at_ms, action in trace.started if isinstance(action, Infer) and action.query == query]


def answered_ms(trace):
    return [verdict.now_ms for verdict in trace.verdicts if isinstance(verdict, Answered)]


def test_without_a_word_on_when_weights_are_needed_all_are_awaited():
    trace = played(plan_with({}), [kept("q", 0)])
    assert started_ms(trace) == [10.0]
    assert answered_ms(trace) == [20.0]


def test_a_query_starts_as_soon_as_it_will_not_wait_for_its_last_weights():
    trace = played(plan_with({"last": 0.5}), [kept("q", 0)])
    assert started_ms(trace) == [5.0]
    assert answered_ms(trace) == [15.0]


def test_a_short_wait_within_the_run_is_taken_and_a_long_one_is_not():
    brief = played(plan_with({"last": 0.3}), [kept("q", 0)])
    assert (started_ms(brief), answered_ms(brief)) == ([5.0], [17.0])
    long = played(plan_with({"last": 0.2}), [kept("q", 0)])
    assert (started_ms(long), answered_ms(long)) == ([10.0], [20.0])


def test_a_wrong_prediction_costs_time_and_nothing_else():
    plan = plan_with({"last": 0.5})
    slow = replace(plan, load_ms={"first": 5.0, "last": 50.0})
    trace = played(plan, [kept("q", 0)], slow)
    assert started_ms(trace) == [5.0]
    assert answered_ms(trace) == [60.0]


def test_without_overlap_nothing_starts_early():
    assert started_ms(played(plan_with({"last": 0.5}, overlap=False), [kept("q", 0)])) == [10.0]


def test_what_is_ready_and_done_in_time_computes_first():
    """Its weight is there from the first frame on; it takes 4 ms, and the other one's first weight 5."""
    other = query_of("r", "own", run_ms=4.0)
    plan = plan_with({"last": 0.5}, other, weight_bytes=BYTES | {"own": 10})
    trace = played(plan, [kept("r", 0), kept("q", 1, 50.0), kept("r", 2, 50.0)])
    assert started_ms(trace, "r")[-1] == 50.0
    assert started_ms(trace) == [55.0]


def test_a_frame_whose_weights_did_not_arrive_is_answered_at_the_next_try():
    failures = iter(["broken"])

    def failure_of(action):
        return next(failures, None) if isinstance(action, Load) and action.weight == "last" else None

    trace = played(plan_with({"last": 0.5}), [kept("q", 0)], failure_of=failure_of)
    assert len(started_ms(trace)) == 2
    assert [type(verdict) for verdict in trace.verdicts] == [Answered]


def test_weights_that_never_arrive_fail_the_frame_after_two_more_tries():
    def failure_of(action):
        return "broken" if isinstance(action, Load) and action.weight == "last" else None

    trace = played(plan_with({"last": 0.5}), [kept("q", 0)], failure_of=failure_of)
    (verdict,) = trace.verdicts
    assert isinstance(verdict, Dropped)
    assert "did not load: broken" in verdict.reason
    assert len(started_ms(trace)) == 1

"""Going from one plan to another while frames come: nobody is lost, and no inference mixes two releases."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.policy.transition import labelled, mixed_plan, trial_name
from gemel_ray.spec.actions import Answered, Evict, Frame, Infer, Load, Replanned
from gemel_ray.spec.errors import OverBudgetError, ServingError
from gemel_ray.spec.plan import EdgePlan, PlannedQuery

BUDGET_BYTES = 50


def plan_of(weights, release, *, batch_size=2, workspace_bytes=5):
    """Ten bytes and two ms a weight, three ms an inference."""
    queries = tuple(
        PlannedQuery(
            name,
            held,
            batch_size,
            dict.fromkeys(range(1, batch_size + 1), 3.0),
            dict.fromkeys(range(1, batch_size + 1), workspace_bytes),
        )
        for name, held in weights.items()
    )
    used = {weight for held in weights.values() for weight in held}
    return labelled(EdgePlan(queries, dict.fromkeys(used, 10), dict.fromkeys(used, 2.0), BUDGET_BYTES), release)


OLD = plan_of({"a": ("s1", "a1"), "b": ("s1", "b1"), "c": ("c1",)}, 1)
NEW = plan_of({"b": ("s2", "b2"), "a": ("s2", "a1"), "d": ("d2",)}, 2)


def weights_in(plan):
    return {query.name: (query.release, query.weights) for query in plan.queries}


def test_plans_in_between_change_one_query_at_a_time():
    tried = weights_in(mixed_plan(OLD, NEW, set(), "b"))
    assert tried == weights_in(OLD) | {trial_name("b", 2): (2, ("s2", "b2"))}
    half = weights_in(mixed_plan(OLD, NEW, {"b"}))
    assert half == {"b": (2, ("s2", "b2")), "a": (1, ("s1", "a1")), "c": (1, ("c1",))}
    every = weights_in(mixed_plan(OLD, NEW, {"a", "b", "d"}))
    assert every == weights_in(NEW) | {"c": (1, ("c1",))}


def test_a_mixed_plan_knows_just_the_weights_it_names():
    plan = mixed_plan(OLD, NEW, {"b"})
    assert set(plan.weight_bytes) == set(plan.load_ms) == {"s1", "a1", "s2", "b2", "c1"}


def frames_of(names, count, period_ms, *, droppable):
    return [
        Frame(name, place * 1000 + index, index * period_ms + place, index * period_ms + place + 60, droppable)
        for place, name in enumerate(names)
        for index in range(count)
    ]


def followed(replans, frames, plan=OLD):
    trace = Trace(SimulatedDevice(plan, frames, replans=[Replanned(other, at_ms) for at_ms, other in replans]))
    run(Scheduler(plan), trace, trace.hear)
    return trace


STEPS = [
    mixed_plan(OLD, NEW, set(), "b"),
    mixed_plan(OLD, NEW, {"b"}),
    mixed_plan(OLD, NEW, {"b"}, "a"),
    mixed_plan(OLD, NEW, {"a", "b"}),
    mixed_plan(OLD, NEW, {"a", "b", "d"}),
    NEW,
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1, 300), min_size=6, max_size=6).map(sorted), st.booleans(), st.floats(4, 40))
def test_every_frame_gets_one_verdict_and_every_inference_has_one_release(times, droppable, period_ms):
    frames = frames_of("abc", 12, period_ms, droppable=droppable)
    # Whoever replans takes no frames any more of a query that leaves.
    frames = [frame for frame in frames if frame.query != "c" or frame.arrived_ms < times[-1]]
    trace = followed(zip(times, STEPS, strict=True), frames)
    verdicts = {verdict.frame.frame: verdict for verdict in trace.verdicts}
    assert len(trace.verdicts) == len(frames) == len(verdicts)
    by_release = {1: weights_in(OLD), 2: weights_in(NEW)}
    resident = set()
    for _, action in trace.started:
        if isinstance(action, Load):
            resident.add(action.weight)
        elif isinstance(action, Evict):
            resident.remove(action.weight)
        else:
            assert set(by_release[action.release][action.query][1]) <= resident
    assert trace.peak_bytes <= BUDGET_BYTES


def test_answers_say_which_release_they_are_from():
    frames = frames_of("ab", 20, 20, droppable=False)
    trace = followed([(100.0, mixed_plan(OLD, NEW, {"b"})), (200.0, NEW)], frames)
    releases = {name: [v.release for v in trace.verdicts if v.frame.query == name] for name in "ab"}
    assert all(sorted(found) == found and set(found) == {1, 2} for found in releases.values())
    first = {name: found.index(2) for name, found in releases.items()}
    assert first["b"] < first["a"]


def test_frames_of_a_query_that_leaves_are_told_so():
    trace = followed([(0.5, NEW)], [Frame("c", 0, 0.0, 1e9, False), Frame("c", 1, 0.1, 1e9, False)])
    reasons = [getattr(verdict, "reason", "answered") for verdict in trace.verdicts]
    assert "failed: the query is no longer served here" in reasons


def test_weights_that_both_have_are_not_loaded_again():
    same = replace(
        NEW, queries=tuple(replace(query, release=2) for query in OLD.queries), weight_bytes=OLD.weight_bytes
    )
    same = replace(same, load_ms=OLD.load_ms)
    frames = frames_of("abc", 10, 30, droppable=False)
    trace = followed([(100.0, same)], frames)
    assert len([action for _, action in trace.started if isinstance(action, Load)]) == 4
    assert {verdict.release for verdict in trace.verdicts if isinstance(verdict, Answered)} == {1, 2}
    assert all(isinstance(action, Load | Infer) for _, action in trace.started)


def test_a_plan_that_does_not_fit_is_refused_before_it_is_followed():
    scheduler = Scheduler(OLD)
    large = plan_of({"a": ("w1", "w2", "w3", "w4", "w5")}, 2)
    with pytest.raises(OverBudgetError, match="'a' needs 55 bytes"):
        scheduler.handle(Replanned(large, 0.0))
    assert scheduler.plan is OLD


def test_another_way_to_evict_and_to_take_turns_holds_from_the_next_inference_on():
    plan = plan_of({name: (f"{name}1", f"{name}2") for name in "abc"}, 1, workspace_bytes=0)
    strict = replace(plan, eviction="least_recently_used", work_conserving=False)
    frames = frames_of("abc", 60, 20, droppable=False)
    as_it_was, other = followed([], frames, plan), followed([], frames, strict)
    assert as_it_was.started != other.started
    half_ms = frames_of("a", 31, 20, droppable=False)[-1].arrived_ms
    changed = followed([(half_ms, strict)], frames, plan)
    assert [each for each in changed.started if each[0] < half_ms] == [
        each for each in as_it_was.started if each[0] < half_ms
    ]
    assert [action for _, action in changed.started] != [action for _, action in as_it_was.started]
    assert [action for _, action in changed.started][-30:] == [action for _, action in other.started][-30:]


def test_a_plan_with_an_eviction_policy_that_is_not_there_is_refused_before_it_is_followed():
    scheduler = Scheduler(OLD)
    with pytest.raises(ServingError, match="least_recently_used"):
        scheduler.handle(Replanned(replace(OLD, eviction="least_recent"), 0.0))
    assert scheduler.plan is OLD

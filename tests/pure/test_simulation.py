"""A node simulated: the numbers are those of its trace, and they tell policies apart."""

import json
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest
from edge_plans import camera_frame, kept, plan_of, plans, profile_of, query_of, traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.edge.choosing import choose_plan, expected_traffic
from gemel_ray.edge.chrome_trace import chrome_trace
from gemel_ray.edge.loop import run
from gemel_ray.edge.playing import simulate
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.simulation import cameras_of, measure, play
from gemel_ray.edge.trace import Trace
from gemel_ray.edge.traffic import Camera, periodic
from gemel_ray.policy.baselines import POLICIES, Candidate, candidate_plans
from gemel_ray.policy.sharing import ModelLayer, ServedModel
from gemel_ray.spec.actions import Infer, Load
from gemel_ray.spec.errors import InputError, OverBudgetError

MIB = 1 << 20


def family(count, *, fps=10, slo_ms=150):
    """Models of 40 MiB, three quarters of which the merge shares among all of them."""
    return {
        f"q{place}": ServedModel(
            (
                ModelLayer(10 * MIB, f"own{place}", f"own{place}"),
                ModelLayer(30 * MIB, "common", f"before{place}"),
            ),
            fps,
            slo_ms,
        )
        for place in range(count)
    }


def simulated(policy, models=None, budget_mib=60, duration_ms=5_000):
    models = models or family(4)
    # 10 ms a frame; 40 ms to load a model.
    profile = profile_of(models, load_bytes_per_ms=MIB)
    return simulate(models, profile, policy, budget_bytes=budget_mib * MIB, duration_ms=duration_ms)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_simulation_keeps_the_budget_and_tells_of_every_query(policy):
    found = simulated(policy)
    assert found.policy == policy
    assert found.goodput_fraction.keys() == found.stale_fraction.keys() == family(4).keys()
    assert all(0 <= value <= 1 for value in found.goodput_fraction.values())
    assert 0 < found.peak_bytes <= found.budget_bytes
    assert 0 < found.busy_fraction <= 1
    assert found.span_ms >= 4_900
    assert found.worst_goodput_fraction <= found.mean_goodput_fraction
    assert simulated(policy) == found


def test_with_memory_for_everything_all_policies_load_each_weight_once_and_answer_nearly_every_frame():
    for policy in POLICIES:
        found = simulated(policy, budget_mib=200)
        assert found.swap_bytes == found.weights_bytes
        assert found.worst_goodput_fraction > 0.95


def test_merging_beats_everything_that_shares_less_when_memory_is_tight():
    merged = simulated("ours_merged")
    assert merged.weights_bytes == 70 * MIB
    for policy in ("ours", "time_space", "model_lru", "dedup", "stem"):
        found = simulated(policy)
        assert found.weights_bytes == 160 * MIB
        assert found.swap_bytes > merged.swap_bytes
        assert found.mean_goodput_fraction < merged.mean_goodput_fraction


def test_evicting_what_is_needed_next_is_the_worst_of_all():
    goodput = {policy: simulated(policy).mean_goodput_fraction for policy in POLICIES}
    assert min(goodput, key=goodput.get) == "model_lru"
    assert max(goodput.values()) == pytest.approx(goodput["everything_resident"], abs=0.02)


def test_an_unknown_policy_and_a_model_too_large_are_refused():
    with pytest.raises(InputError, match="did you mean 'ours'"):
        simulated("our")
    with pytest.raises(OverBudgetError, match="alone needs"):
        simulated("ours", budget_mib=30)


def outcomes(plans, cameras, duration_ms=3_000):
    found = [measure("", each.plan, play(each.plan, periodic(cameras, duration_ms))) for each in plans]
    return [(each.mean_goodput_fraction, each.worst_goodput_fraction) for each in found]


@pytest.mark.parametrize("budget_mib", [80, 90, 100])
def test_of_several_plans_the_one_that_simulates_best_is_chosen(budget_mib):
    models = family(5, fps=20, slo_ms=300)
    profile = profile_of(models, load_bytes_per_ms=MIB)
    plans = candidate_plans(POLICIES["ours"], models, profile, budget_bytes=budget_mib * MIB)
    cameras = cameras_of(models)
    scores = outcomes(plans, cameras, 6_000)
    assert len(set(scores)) > 1
    assert choose_plan(plans, [periodic(cameras, 6_000)]) is plans[scores.index(max(scores))].plan
    assert choose_plan(plans[:1], []) is plans[0].plan


def test_no_more_plans_are_tried_once_one_answers_every_frame():
    models = family(3, fps=5, slo_ms=400)
    plan = candidate_plans(
        POLICIES["time_space"], models, profile_of(models, load_bytes_per_ms=MIB), budget_bytes=200 * MIB
    )[0]
    untried = Candidate(replace(plan.plan, eviction="no such policy: trying it would raise"))
    assert choose_plan([plan, untried], expected_traffic(cameras_of(models))) is plan.plan


def least_and_most(plans, frames):
    """The plans of least and of most goodput on all of these frames, which differ; neither as a baseline."""
    scores = [measure("", each.plan, play(each.plan, frames)).mean_goodput_fraction for each in plans]
    (worst, least), *_, (best, most) = sorted(zip(scores, range(len(plans)), strict=True))
    assert worst < best
    return [replace(plans[place], is_baseline=False) for place in (least, most)]


def test_a_beginning_without_a_loss_decides_nothing():
    models = family(5, fps=20, slo_ms=300)
    plans = candidate_plans(POLICIES["ours"], models, profile_of(models, load_bytes_per_ms=MIB), budget_bytes=90 * MIB)
    # Nothing for two seconds, then all that the cameras send.
    frames = [frame for frame in periodic(cameras_of(models), 6_000) if frame.arrived_ms > 2_000]
    least, most = least_and_most(plans, frames)
    assert choose_plan([least, most], [frames]) is most.plan


def test_what_comes_after_the_traffic_that_plans_are_tried_on_decides_nothing():
    models = family(5, fps=20, slo_ms=300)
    plans = candidate_plans(POLICIES["ours"], models, profile_of(models, load_bytes_per_ms=MIB), budget_bytes=90 * MIB)
    frames = [frame for frame in periodic(cameras_of(models), 12_000) if frame.arrived_ms > 7_000]
    least, most = least_and_most(plans, frames)
    assert choose_plan([least, most], [frames]) is least.plan


def test_a_baselines_plan_is_followed_unless_another_is_clearly_better():
    models = family(5, fps=30, slo_ms=200)
    plans = candidate_plans(POLICIES["ours"], models, profile_of(models, load_bytes_per_ms=MIB), budget_bytes=90 * MIB)
    assert {planned.is_baseline for planned in plans} == {False, True}
    cameras = cameras_of(models)
    scores = outcomes(plans, cameras, 6_000)
    (worst, least), *_, (best, most) = sorted(zip(scores, range(len(plans)), strict=True))
    assert worst[0] + 0.1 < best[0] < 1
    plain = replace(plans[most], is_baseline=False)
    same, worse = (replace(plans[place], is_baseline=True) for place in (most, least))
    assert plain.plan is same.plan
    other = replace(same, plan=replace(same.plan))
    assert choose_plan([plain, other], [periodic(cameras, 6_000)]) is other.plan
    assert choose_plan([plain, worse], [periodic(cameras, 6_000)]) is plain.plan


def test_a_query_whose_frames_come_just_after_its_turns_gets_its_share():
    """Two of four models fit; without a turn out of order the one would answer three frames of a hundred."""
    runs_and_phases = {"first": (4.0, 22.1), "second": (2.0, 15.3), "third": (2.0, 29.3), "fourth": (4.0, 23.1)}
    plan = plan_of(
        *(query_of(name, f"w-{name}", run_ms=run_ms) for name, (run_ms, _) in runs_and_phases.items()),
        weight_bytes={f"w-{name}": 10 for name in runs_and_phases}, budget_bytes=20, load_ms=12.0,
    )  # fmt: skip
    cameras = [Camera(name, 25, 40, phase_ms) for name, (_, phase_ms) in runs_and_phases.items()]
    goodput = measure("", plan, play(plan, periodic(cameras, 6_000))).goodput_fraction
    assert min(goodput.values()) > 0.5
    assert sorted(goodput.values())[1] > 0.9


@settings(max_examples=15)
@given(st.integers(2, 6), st.integers(40, 200), st.sampled_from([5, 10, 20]), st.sampled_from([60, 100, 200]))
def test_ours_is_not_behind_its_alternatives_on_the_traffic_it_was_chosen_for(count, budget_mib, fps, slo_ms):
    models = family(count, fps=fps, slo_ms=slo_ms)
    draws = expected_traffic(cameras_of(models))

    def mean(policy):
        profile = profile_of(models, load_bytes_per_ms=MIB)
        plans = candidate_plans(POLICIES[policy], models, profile, budget_bytes=budget_mib * MIB)
        chosen = choose_plan(plans, draws)
        return fmean(measure("", chosen, play(chosen, frames)).mean_goodput_fraction for frames in draws)

    for policy in ("ours", "ours_merged"):
        assert all(mean(policy) >= mean(other) for other in POLICIES[policy].alternatives)


def test_cameras_follow_the_models_and_do_not_all_start_at_once():
    cameras = cameras_of(family(4, fps=20, slo_ms=90))
    assert cameras[2] == Camera("q2", 20, 90, phase_ms=25.0)


def test_the_metrics_of_a_trace_by_hand():
    plan = plan_of(query_of("q", "a", workspace_bytes=3), weight_bytes={"a": 10}, budget_bytes=20)
    frames = [camera_frame("q", 0, 10.0), camera_frame("q", 1, 11.0), camera_frame("q", 2, 100.0, slo_ms=1)]
    found = measure("by hand", plan, play(plan, frames))
    # Loaded from 10 to 15, computed to 25; the first frame gave way, the last one could not be in time.
    assert found.goodput_fraction == {"q": pytest.approx(1 / 3)}
    assert found.stale_fraction == {"q": pytest.approx(2 / 3)}
    assert (found.swap_bytes, found.weights_bytes, found.peak_bytes) == (10, 10, 13)
    assert (found.span_ms, found.busy_fraction) == (90.0, pytest.approx(10 / 90))


def test_no_frames_make_an_empty_simulation():
    found = simulated("ours", duration_ms=0)
    assert (found.goodput_fraction, found.swap_bytes, found.busy_fraction, found.span_ms) == ({}, 0, 0, 0)
    assert found.mean_goodput_fraction == found.worst_goodput_fraction == 1


@given(st.data())
def test_the_traces_own_account_of_bytes_agrees_with_the_ledger(data):
    plan = data.draw(plans())
    failing = iter(data.draw(st.lists(st.booleans(), max_size=20)))
    device = SimulatedDevice(
        plan, data.draw(traffic(plan)), failure_of=lambda action: "broken" if next(failing, False) else None
    )
    trace = Trace(device)
    run(Scheduler(plan), trace, trace.hear)
    assert trace.peak_bytes == device.peak_bytes <= plan.budget_bytes


@given(st.data())
def test_a_chrome_trace_shows_all_work_in_two_lanes_that_never_overlap_themselves(data):
    plan = data.draw(plans())
    trace = play(plan, data.draw(traffic(plan)))
    events = json.loads(json.dumps(chrome_trace(trace)))
    for lane, kind in (("load", Load), ("infer", Infer)):
        works = [event for event in events if event["ph"] == "X" and event["cat"] == lane]
        assert len(works) == sum(isinstance(action, kind) for _, action in trace.started)
        assert len({event["tid"] for event in works}) <= 1
        for one, other in pairwise(works):
            assert one["ts"] + one["dur"] <= other["ts"] + 1e-6 * max(1, other["ts"])


def test_a_chrome_trace_by_hand():
    plan = plan_of(query_of("q", "a", workspace_bytes=3), weight_bytes={"a": 10}, budget_bytes=20)
    failures = iter(["no such file"])
    trace = Trace(
        SimulatedDevice(plan, [kept("q", 7, 2.0), camera_frame("q", 8, 2.5, slo_ms=1)],
                        failure_of=lambda action: next(failures, None))
    )  # fmt: skip
    run(Scheduler(plan), trace, trace.hear)
    events = chrome_trace(trace)
    assert {event["args"]["name"]: event["tid"] for event in events if event["ph"] == "M"} == {
        "load": 1,
        "infer": 2,
        "dropped frames": 3,
    }
    works = [(e["name"], e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert works == [("a", 1, 2000, 5000), ("a", 1, 7000, 5000), ("q x1", 2, 12000, 10000)]
    assert [e["args"].get("failure") for e in events if e["ph"] == "X"] == ["no such file", None, None]
    assert [(e["name"], e["args"]["frame"]) for e in events if e["ph"] == "i"] == [("q: too late", 8)]

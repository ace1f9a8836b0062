"""Another plan for queries that lose frames, chosen on the frames that came last."""

from dataclasses import replace

import pytest
from edge_plans import manifest_of, plan_of, profile_of, query_of
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.edge.recent import Recent, RecentTraffic, traffic_of
from gemel_ray.edge.reconsidering import loses_frames, reconsider
from gemel_ray.edge.simulation import measure, play
from gemel_ray.edge.traffic import Camera, periodic
from gemel_ray.policy.eviction import EVICTIONS
from gemel_ray.policy.released import released_plans
from gemel_ray.spec.actions import Answered, Dropped

# Each of five models takes 20 ms to load; two of them fit.
GOOD = plan_of(
    *(query_of(f"q{place}", f"w{place}", batch=4) for place in range(5)),
    weight_bytes={f"w{place}": 10 for place in range(5)}, budget_bytes=20, load_ms=20.0,
)  # fmt: skip
# What is needed next goes first, and nothing loads meanwhile.
BAD = replace(GOOD, eviction="least_recently_used", work_conserving=False, overlap=False)
CAMERAS = [Camera(f"q{place}", 10, 150, 20.0 * place) for place in range(5)]


def served(plan, cameras=CAMERAS, *, from_ms=0.0, duration_ms=6_000):
    """What a box would remember that has followed this plan."""
    recent = Recent()
    for verdict in play(plan, periodic(cameras, from_ms + duration_ms)).verdicts:
        recent.take(verdict)
    return traffic_of(recent.verdicts(from_ms + duration_ms), plan.names)


def goodput(plan, frames):
    return measure("", plan, play(plan, frames)).mean_goodput_fraction


def test_the_last_six_seconds_are_remembered_from_their_first_frame_on():
    frames = periodic(CAMERAS, 20_000)
    recent = Recent()
    for frame in frames:
        recent.take(Answered(frame, frame.arrived_ms + 30))
    assert recent.verdicts(30_000) == []
    seen = traffic_of(recent.verdicts(20_000), GOOD.names)
    first = seen.frames[0]
    assert (first.frame, first.arrived_ms, first.deadline_ms) == (0, 0.0, pytest.approx(150))
    assert [frame.frame for frame in seen.frames] == list(range(len(seen.frames)))
    assert seen.frames[-1].arrived_ms == pytest.approx(6_000, abs=60)
    assert seen.fps == {camera.query: pytest.approx(10, rel=0.05) for camera in CAMERAS}
    assert seen.goodput_fraction == 1
    assert not loses_frames(seen)


def test_of_a_query_that_leaves_and_of_too_little_nothing_is_learnt():
    recent = Recent()
    assert traffic_of(recent.verdicts(0), GOOD.names) is None
    for frame in periodic(CAMERAS, 2_000):
        recent.take(Dropped(frame, frame.arrived_ms, "too late"))
    assert traffic_of(recent.verdicts(2_000), GOOD.names) is None
    recent = Recent()
    for frame in periodic(CAMERAS, 8_000):
        recent.take(Dropped(frame, frame.arrived_ms, "too late"))
    assert traffic_of(recent.verdicts(8_000), GOOD.names).goodput_fraction == 0
    assert {frame.query for frame in traffic_of(recent.verdicts(8_000), {"q1", "q3"}).frames} == {"q1", "q3"}
    assert traffic_of(recent.verdicts(8_000), {"elsewhere"}) is None


def test_late_and_dropped_frames_count_against_each_query_alike():
    recent = Recent()
    for frame in periodic([replace(CAMERAS[0], fps=20), CAMERAS[1]], 6_000):
        late = frame.query == "q0"
        recent.take(Answered(frame, frame.arrived_ms + (151 if late else 150)))
    assert traffic_of(recent.verdicts(6_000), {"q0", "q1"}).goodput_fraction == 0.5


def test_a_plan_that_would_have_answered_clearly_more_takes_over():
    seen = served(BAD)
    found = reconsider(BAD, [BAD, GOOD], seen)
    assert found.plan == GOOD
    assert found.simulated_fraction == pytest.approx(seen.goodput_fraction, abs=0.02)
    assert found.expected_fraction > found.simulated_fraction + 0.03
    assert goodput(GOOD, periodic(CAMERAS, 6_000)) > goodput(BAD, periodic(CAMERAS, 6_000)) + 0.03
    assert "another plan" in str(found)


def test_a_plan_is_kept_where_no_other_is_clearly_better():
    seen = served(GOOD)
    for others in ([], [GOOD], [BAD]):
        found = reconsider(GOOD, others, seen)
        assert found.plan is None
        assert found.expected_fraction == found.simulated_fraction
    assert "kept" in str(found)


def test_a_plan_is_kept_where_simulation_and_measurement_do_not_agree():
    seen = replace(served(BAD), goodput_fraction=served(BAD).goodput_fraction - 0.2)
    assert reconsider(BAD, [GOOD], seen).plan is None


@settings(max_examples=20)
@given(st.integers(2, 6), st.data())
def test_who_reconsiders_never_has_less_of_the_frames_it_has_seen(count, data):
    """Whatever plan is being followed, and whenever frames come."""
    weights = {f"q{place}": (f"w{place}", "shared") for place in range(count)}
    manifest = manifest_of(weights, {w: 10 for held in weights.values() for w in held}, fps=10, slo_ms=120)
    profile = profile_of(weights, load_bytes_per_ms=0.5)
    budget_bytes = 10 * data.draw(st.integers(2, count + 1))
    plans = [each.plan for each in released_plans(manifest, profile, "ours_released", budget_bytes=budget_bytes)]
    current = replace(data.draw(st.sampled_from(plans)), eviction=data.draw(st.sampled_from(sorted(EVICTIONS))))
    cameras = [Camera(name, 10, 120, data.draw(st.floats(0, 100))) for name in weights]
    frames = periodic(cameras, 6_000)
    seen = RecentTraffic(frames, goodput(current, frames), {})
    found = reconsider(current, plans, seen)
    assert found.expected_fraction >= found.simulated_fraction
    assert found.expected_fraction == goodput(found.plan or current, frames)


def test_a_releases_plans_are_made_for_the_rates_at_which_frames_come():
    weights = {"x": ("a",), "y": ("b",)}
    manifest = manifest_of(weights, {"a": 10, "b": 10}, fps=5, slo_ms=400)
    profile = profile_of(weights, run_ms={1: 40.0, 2: 45.0, 4: 50.0}, load_bytes_per_ms=0.5)
    slow, fast = (
        released_plans(manifest, profile, "ours_released", budget_bytes=100, fps=fps)[0].plan
        for fps in ({}, {"x": 60.0})
    )
    assert [query.batch_size for query in slow.queries if query.name == "x"] < [
        query.batch_size for query in fast.queries if query.name == "x"
    ]
    assert {query.release for query in slow.queries} == {manifest.release}


def test_time_and_space_sharing_in_the_given_order_is_among_a_releases_plans():
    weights = {name: (name, "shared") for name in ("z", "a", "m")}
    manifest = manifest_of(weights, {"z": 30, "a": 10, "m": 20, "shared": 5})
    plans = released_plans(manifest, profile_of(weights), "ours_released", budget_bytes=40)
    baselines = [each.plan for each in plans if each.is_baseline]
    assert baselines
    for plan in baselines:
        assert [query.name for query in plan.queries] == list(weights)
        assert (plan.eviction, plan.work_conserving) == ("most_recently_used", False)
        assert plan.weight_bytes == plans[0].plan.weight_bytes
    assert not any(
        each.is_baseline for each in released_plans(manifest, profile_of(weights), "ours_released", budget_bytes=99)
    )

"""The predicted round: agrees with the layer-by-layer policy and with what the scheduler then does."""

from dataclasses import replace

import pytest
from edge_plans import kept, query_of, sharing
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.edge.trace import Trace
from gemel_ray.policy.duty_cycle import Round, TurnCost, bundle
from gemel_ray.policy.order import cycle_bytes
from gemel_ray.spec.actions import Infer
from gemel_ray.spec.plan import EdgePlan


def round_of(weights, weight_bytes, load_ms=None):
    return Round(tuple(weights), bundle(weights, weight_bytes, load_ms or dict.fromkeys(weight_bytes, 1.0)))


@given(sharing())
def test_bundles_hold_every_weight_once_under_exactly_its_users(found):
    weights, weight_bytes, _, _ = found
    bundles = bundle(weights, weight_bytes, dict.fromkeys(weight_bytes, 2.0))
    used = {weight for needed in weights.values() for weight in needed}
    assert sum(each.bytes for each in bundles) == sum(weight_bytes[weight] for weight in used)
    assert sum(each.load_ms for each in bundles) == 2.0 * len(used)
    assert len({each.users for each in bundles}) == len(bundles)
    for query, needed in weights.items():
        mine = [each for each in bundles if query in each.users]
        assert sum(each.bytes for each in mine) == sum(weight_bytes[weight] for weight in needed)


@given(sharing(most_bytes=1, least_bytes=1))
def test_for_weights_of_one_byte_the_prediction_equals_the_policy(found):
    weights, weight_bytes, workspace_bytes, budget_bytes = found
    costs = {query: TurnCost(1.0, workspace_bytes[query]) for query in weights}
    loads = round_of(weights, weight_bytes).loads(costs, budget_bytes=budget_bytes, overlap=False)
    exact = cycle_bytes(
        tuple(weights), weights, weight_bytes, budget_bytes=budget_bytes, workspace_bytes=workspace_bytes
    )
    assert sum(load.bytes for load in loads) == exact


@given(sharing())
def test_the_prediction_loads_no_more_than_all_that_is_needed_and_never_a_negative_amount(found):
    weights, weight_bytes, workspace_bytes, budget_bytes = found
    costs = {query: TurnCost(3.0, workspace_bytes[query]) for query in weights}
    for overlap in (False, True):
        loads = round_of(weights, weight_bytes).loads(costs, budget_bytes=budget_bytes, overlap=overlap)
        for query, load in zip(weights, loads, strict=True):
            own_bytes = sum(weight_bytes[weight] for weight in weights[query])
            assert -1e-9 <= load.bytes <= own_bytes + 1e-9
            assert -1e-9 <= load.exposed_ms <= len(weights[query]) + 1e-9


@given(sharing())
def test_without_overlap_all_load_time_is_exposed(found):
    weights, weight_bytes, workspace_bytes, budget_bytes = found
    per_byte = {weight: float(count_bytes) for weight, count_bytes in weight_bytes.items()}
    costs = {query: TurnCost(1.0, workspace_bytes[query]) for query in weights}
    loads = round_of(weights, weight_bytes, per_byte).loads(costs, budget_bytes=budget_bytes, overlap=False)
    for load in loads:
        assert load.exposed_ms == pytest.approx(load.bytes)


@given(sharing())
def test_what_fits_whole_loads_nothing(found):
    weights, weight_bytes, workspace_bytes, _ = found
    costs = {query: TurnCost(1.0, workspace_bytes[query]) for query in weights}
    planned = round_of(weights, weight_bytes)
    budget_bytes = planned.total_bytes + max(workspace_bytes.values())
    assert planned.duty_cycle_ms(costs, budget_bytes=budget_bytes, overlap=True) == len(weights)


THREE = {"x": ("a",), "y": ("b",), "z": ("c",)}


@pytest.mark.parametrize("run_ms", [20.0, 30.0])
def test_a_turn_as_long_as_the_next_load_hides_it(run_ms):
    # Two of three fit: the load of the next runs beside the turn.
    planned = round_of(THREE, dict.fromkeys("abc", 10), dict.fromkeys("abc", 20.0))
    costs = dict.fromkeys(THREE, TurnCost(run_ms, 0))
    assert planned.duty_cycle_ms(costs, budget_bytes=20, overlap=True) == pytest.approx(3 * run_ms)


def test_a_shorter_turn_hides_as_much_as_it_takes_itself():
    planned = round_of(THREE, dict.fromkeys("abc", 10), dict.fromkeys("abc", 20.0))
    costs = dict.fromkeys(THREE, TurnCost(5.0, 0))
    loads = planned.loads(costs, budget_bytes=20, overlap=True)
    loading_ms = sum(load.bytes for load in loads) * 2.0
    # At most one turn's time is hidden in each turn, and some of it is.
    assert loading_ms - 3 * 5.0 <= sum(load.exposed_ms for load in loads) < loading_ms


def measured_cycle_ms(plan, rounds=20, warm=3):
    """The mean time of a late round on the simulated device, everything pending from the start."""
    names = [query.name for query in plan.queries for _ in range(rounds)]
    frames = [kept(name, number) for number, name in enumerate(names)]
    trace = Trace(SimulatedDevice(plan, frames))
    run(Scheduler(replace(plan, work_conserving=False)), trace, trace.hear)
    first = plan.queries[0].name
    starts = [at for at, action in trace.started if isinstance(action, Infer) and action.query == first]
    return (starts[-1] - starts[warm]) / (len(starts) - 1 - warm)


@settings(max_examples=40)
@given(st.integers(2, 8), st.floats(1, 40), st.floats(1, 40), st.booleans(), st.integers(0, 20))
def test_a_strict_round_robin_takes_about_as_long_as_predicted(count, run_ms, load_ms, overlap, spare):
    """Pairs of models that share half of their weights; a part of them all fits."""
    weights = {
        f"q{place}": tuple(f"{owner}_{piece}" for owner in (place, f"pair{place // 2}") for piece in range(5))
        for place in range(count)
    }
    weight_bytes = {weight: 1 for needed in weights.values() for weight in needed}
    each_ms = dict.fromkeys(weight_bytes, load_ms / 10)
    budget_bytes = 12 + spare
    planned = tuple(query_of(name, *needed, run_ms=run_ms) for name, needed in weights.items())
    plan = EdgePlan(planned, weight_bytes, each_ms, budget_bytes, overlap)
    costs = {query: TurnCost(run_ms, 0) for query in weights}
    predicted_ms = round_of(weights, weight_bytes, each_ms).duty_cycle_ms(
        costs, budget_bytes=budget_bytes, overlap=overlap
    )
    # One weight of ten more or less in every turn, beside what rounds differ from each other.
    assert measured_cycle_ms(plan) == pytest.approx(predicted_ms, rel=0.15, abs=count * load_ms / 10)

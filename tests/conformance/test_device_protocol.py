"""The Device protocol, stated once for every device: what it grants, what it refuses, and in which order it works."""

import pytest
from device_benches import WORKSPACE_BYTES, Audit, bytes_of, do, ends_of, infer_of, loads_of

from gemel_ray.spec.actions import Arrived, Evict, Frame, Infer, Load, Stopped
from gemel_ray.spec.errors import OverBudgetError

ONE, TWIN, OTHER = "north_cars", "south_cars", "north_people"
AMPLE_BYTES = 10**9


def frames(*queries):
    return [Frame(query, number, 0.0, 1e9, droppable=False) for number, query in enumerate(queries)]


def refused(device, action, error, **options):
    """It raises, and changes nothing: what was granted before still is, and no more."""
    with pytest.raises(error, **options):
        device.start(action)


def test_a_load_ends_with_its_own_action_and_no_failure(bench):
    device = Audit(bench.device(AMPLE_BYTES), bench)
    loads = loads_of(bench.plan, ONE)
    for load in loads:
        (done,) = do(device, load)
        assert (done.action, done.failure) == (load, None)
        assert done.took_ms >= 0
        assert done.now_ms <= device.now_ms()


def test_an_inference_on_weights_that_have_arrived_ends_with_its_own_action(bench):
    device = Audit(bench.device(AMPLE_BYTES, frames(ONE)), bench)
    do(device, *loads_of(bench.plan, ONE))
    infer = infer_of(bench.plan, ONE, 0)
    (done,) = do(device, infer)
    assert (done.action, done.failure) == (infer, None)


def test_each_lane_works_in_the_order_it_was_given(bench):
    device = Audit(bench.device(AMPLE_BYTES, frames(ONE, TWIN)), bench)
    pair = loads_of(bench.plan, ONE)
    pair += loads_of(bench.plan, TWIN, without={load.weight for load in pair})
    assert [done.action for done in do(device, *pair)] == pair
    infers = [infer_of(bench.plan, ONE, 0), infer_of(bench.plan, TWIN, 1), infer_of(bench.plan, ONE, 0)]
    assert [done.action for done in do(device, *infers)] == infers


def test_a_load_goes_on_while_an_inference_is_held_up(bench):
    device = bench.device(AMPLE_BYTES, frames(ONE))
    do(device, *loads_of(bench.plan, ONE))
    # On the virtual clock an inference is held up by taking longer.
    infer, load = infer_of(bench.plan, ONE, 0), loads_of(bench.plan, OTHER)[-1]
    with bench.computing_held_up(device):
        device.start(infer)
        device.start(Load(load.weight, load.bytes, load.predicted_ms))
        (first,) = ends_of(device, 1)
    assert first.action == load
    assert ends_of(device, 1)[0].action == infer


def test_loading_what_is_resident_or_on_its_way_is_refused(bench):
    device = Audit(bench.device(AMPLE_BYTES), bench)
    load = loads_of(bench.plan, ONE)[0]
    with bench.copying_held_up(device._device):
        device.start(load)
        refused(device, load, ValueError, match="already")
    ends_of(device, 1)
    refused(device, load, ValueError, match="already")
    assert bench.peak_bytes(device._device) == load.bytes


def test_a_load_over_budget_is_refused_before_anything_is_allocated(bench):
    loads = loads_of(bench.plan, ONE)
    device = Audit(bench.device(sum(load.bytes for load in loads) - 1), bench)
    do(device, *loads[:-1])
    before_bytes = bench.held_bytes(device._device)
    refused(device, loads[-1], OverBudgetError, match="evict something first")
    assert bench.held_bytes(device._device) == before_bytes
    assert bench.peak_bytes(device._device) == device.peak_bytes == sum(load.bytes for load in loads[:-1])


def test_bytes_count_from_the_start_of_a_load_and_are_free_again_once_evicted(bench):
    one, other = loads_of(bench.plan, ONE)[-1], loads_of(bench.plan, OTHER)[-1]
    device = Audit(bench.device(max(one.bytes, other.bytes)), bench)
    with bench.copying_held_up(device._device):
        device.start(one)
        refused(device, other, OverBudgetError)
    ends_of(device, 1)
    device.start(Evict(one.weight))
    assert do(device, other)[0].failure is None


def test_evicting_what_is_absent_or_on_its_way_is_refused(bench):
    device = Audit(bench.device(AMPLE_BYTES), bench)
    load = loads_of(bench.plan, ONE)[0]
    refused(device, Evict(load.weight), ValueError, match="not fully arrived")
    with bench.copying_held_up(device._device):
        device.start(load)
        refused(device, Evict(load.weight), ValueError, match="not fully arrived")
    ends_of(device, 1)
    device.start(Evict(load.weight))
    refused(device, Evict(load.weight), ValueError, match="not fully arrived")


def test_evicting_what_an_inference_uses_is_refused_until_it_has_ended(bench):
    device = Audit(bench.device(AMPLE_BYTES, frames(ONE)), bench)
    loads = loads_of(bench.plan, ONE)
    do(device, *loads)
    with bench.computing_held_up(device._device):
        device.start(infer_of(bench.plan, ONE, 0))
        for load in loads:
            refused(device, Evict(load.weight), ValueError, match="in use")
    ends_of(device, 1)
    for load in loads:
        device.start(Evict(load.weight))
    assert device.used_bytes == 0
    assert bench.held_bytes(device._device) in (0, None)


def test_a_weight_shared_with_a_running_inference_is_in_use_too(bench):
    device = Audit(bench.device(AMPLE_BYTES, frames(ONE, TWIN)), bench)
    one = loads_of(bench.plan, ONE)
    twin = loads_of(bench.plan, TWIN, without={load.weight for load in one})
    (shared, *_), (private, *_) = sorted({load.weight for load in one} - _own(bench, ONE, TWIN)), twin
    do(device, *one, *twin)
    with bench.computing_held_up(device._device):
        device.start(infer_of(bench.plan, ONE, 0))
        refused(device, Evict(shared), ValueError, match="in use")
        device.start(Evict(private.weight))
    ends_of(device, 1)
    refused(device, infer_of(bench.plan, TWIN, 1), ValueError, match="neither there nor on their way")


def _own(bench, query, other):
    """The weights of a query that the other one does not use."""
    return {load.weight for load in loads_of(bench.plan, query)} - {load.weight for load in loads_of(bench.plan, other)}


def test_inferring_with_weights_neither_there_nor_on_their_way_is_refused(bench):
    device = Audit(bench.device(AMPLE_BYTES, frames(ONE)), bench)
    *most, last = loads_of(bench.plan, ONE)
    infer = infer_of(bench.plan, ONE, 0)
    refused(device, infer, ValueError, match="neither there nor on their way")
    do(device, *most)
    refused(device, infer, ValueError, match=last.weight)
    assert do(device, last, infer)[-1].failure is None


def test_an_inference_waits_for_weights_on_their_way_and_holds_them(bench):
    device = Audit(bench.device(AMPLE_BYTES, frames(ONE)), bench)
    loads, infer = loads_of(bench.plan, ONE), infer_of(bench.plan, ONE, 0)
    with bench.computing_held_up(device._device):
        with bench.copying_held_up(device._device):
            for load in loads:
                device.start(load)
            device.start(infer)
        ends = ends_of(device, len(loads))
        assert [done.action for done in ends] == loads
        refused(device, Evict(loads[0].weight), ValueError, match="in use")
    (done,) = ends_of(device, 1)
    assert (done.action, done.failure) == (infer, None)
    assert done.now_ms >= max(end.now_ms for end in ends)


def test_an_inference_whose_weights_fail_to_arrive_fails_and_leaves_nothing_behind(bench):
    *most, last = loads_of(bench.plan, ONE)
    infer = infer_of(bench.plan, ONE, 0)
    device = Audit(bench.device(AMPLE_BYTES, frames(ONE), broken=last.weight), bench)
    do(device, *most)
    with bench.copying_held_up(device._device):
        device.start(last)
        device.start(infer)
    loaded, inferred = ends_of(device, 2)
    assert (loaded.action, inferred.action) == (last, infer)
    assert "did not arrive" in inferred.failure
    for load in most:
        device.start(Evict(load.weight))
    assert device.used_bytes == 0


def test_an_inference_whose_workspace_does_not_fit_is_refused(bench):
    device = Audit(bench.device(bytes_of(bench.plan, ONE) + WORKSPACE_BYTES, frames(ONE)), bench)
    do(device, *loads_of(bench.plan, ONE))
    refused(device, Infer(ONE, (0,), WORKSPACE_BYTES + 1, 4.0), OverBudgetError)
    assert do(device, infer_of(bench.plan, ONE, 0))[0].failure is None
    assert bench.peak_bytes(device._device) == device.peak_bytes == device.budget_bytes


def test_workspace_counts_while_its_inference_runs_and_no_longer(bench):
    device = Audit(bench.device(bytes_of(bench.plan, ONE) + WORKSPACE_BYTES, frames(ONE)), bench)
    do(device, *loads_of(bench.plan, ONE))
    infer = infer_of(bench.plan, ONE, 0)
    with bench.computing_held_up(device._device):
        device.start(infer)
        refused(device, infer, OverBudgetError)
    ends_of(device, 1)
    assert do(device, infer)[0].failure is None


def test_a_failed_load_leaves_nothing_behind_and_may_be_tried_again(bench):
    load = loads_of(bench.plan, ONE)[0]
    device = Audit(bench.device(load.bytes, broken=load.weight), bench)
    for _ in range(2):
        (done,) = do(device, load)
        assert done.action == load
        assert done.failure
        assert device.used_bytes == 0
        refused(device, Evict(load.weight), ValueError, match="not fully arrived")


def test_a_failed_inference_gives_its_workspace_and_its_weights_free(bench):
    device = Audit(bench.device(bytes_of(bench.plan, ONE) + WORKSPACE_BYTES, frames(ONE)), bench)
    loads = loads_of(bench.plan, ONE)
    do(device, *loads)
    (failed,) = do(device, infer_of(bench.plan, ONE, 77))
    assert failed.failure
    assert do(device, infer_of(bench.plan, ONE, 0))[0].failure is None
    device.start(Evict(loads[0].weight))


def test_all_arrivals_are_told_in_order_then_the_stop_then_nothing(bench):
    device = Audit(bench.device(AMPLE_BYTES, frames(ONE, OTHER, ONE)), bench)
    events = [device.next_event() for _ in range(5)]
    assert [type(event) for event in events[:4]] == [Arrived, Arrived, Arrived, Stopped]
    assert [event.frame.frame for event in events[:3]] == [0, 1, 2]
    assert events[4] is None


def test_nothing_more_comes_only_when_nothing_is_under_way(bench):
    device = Audit(bench.device(AMPLE_BYTES), bench)
    assert isinstance(device.next_event(), Stopped)
    device.start(loads_of(bench.plan, ONE)[0])
    assert device.next_event() is not None
    assert device.next_event() is None

"""The one scheduler over both devices: every frame answered, the same verdicts, never a byte too many."""

from collections import Counter
from dataclasses import replace

import pytest
from device_benches import WORKSPACE_BYTES, Audit, bytes_of

from gemel_ray.edge.ledger import Ledger
from gemel_ray.edge.loop import run
from gemel_ray.edge.scheduler import Scheduler
from gemel_ray.policy.eviction import EVICTIONS
from gemel_ray.spec.actions import Answered, Dropped, Evict, Frame, Infer, Load
from gemel_ray.spec.errors import OverBudgetError

QUERIES = ("north_cars", "south_cars", "north_people", "south_people")


class ForgetfulLedger(Ledger):
    """Wrong on purpose: counts a weight at half its bytes."""

    def reserve(self, weight, count_bytes):
        super().reserve(weight, count_bytes // 2)


class LeakyLedger(Ledger):
    """Wrong on purpose: gives a weight's bytes free twice."""

    def release(self, weight):
        freed_bytes = self._weights.get(weight, 0)
        super().release(weight)
        self._resident_bytes -= freed_bytes


def rounds_of_frames(rounds=3):
    """Every query is asked twice a round; nobody minds how late the answer comes."""
    names = [name for _ in range(rounds) for name in QUERIES for _ in range(2)]
    return [Frame(name, number, 0.0, 1e9, droppable=False) for number, name in enumerate(names)]


def budget_for(bench, *queries):
    """Room for these queries' weights and the workspace of one batch of two."""
    return bytes_of(bench.plan, *queries) + 2 * WORKSPACE_BYTES


def serve(bench, budget_bytes, frames, *, eviction="furthest_next_use", overlap=True, ledger=Ledger, withdrawn=()):
    """What the scheduler gave as verdicts, and the audited device."""
    plan = replace(bench.plan, budget_bytes=budget_bytes, overlap=overlap)
    device, verdicts = Audit(bench.device(budget_bytes, frames, ledger=ledger, withdrawn=withdrawn), bench), []
    run(Scheduler(replace(plan, eviction=eviction)), device, verdicts.append)
    return verdicts, device


@pytest.mark.parametrize("held", [QUERIES[2:3], QUERIES[1:3], QUERIES], ids=["one", "two", "all"])
@pytest.mark.parametrize("overlap", [True, False])
def test_every_frame_is_answered_once_whatever_fits(bench, held, overlap):
    frames = rounds_of_frames()
    verdicts, device = serve(bench, budget_for(bench, *held), frames, overlap=overlap)
    assert {(type(verdict), verdict.frame) for verdict in verdicts} == {(Answered, frame) for frame in frames}
    assert len(verdicts) == len(frames)
    assert bench.peak_bytes(device._device) == device.peak_bytes <= device.budget_bytes


@pytest.mark.parametrize("eviction", sorted(EVICTIONS))
def test_every_eviction_policy_serves_within_the_budget(bench, eviction):
    frames = rounds_of_frames(rounds=2)
    verdicts, device = serve(bench, budget_for(bench, *QUERIES[1:3]), frames, eviction=eviction)
    assert all(isinstance(verdict, Answered) for verdict in verdicts)
    assert any(isinstance(action, Evict) for action in device.actions)


def test_the_actions_tell_a_whole_story(bench):
    """Each frame computed once; each weight evicted no more often than loaded; all shared weights loaded once."""
    frames = rounds_of_frames()
    _, device = serve(bench, budget_for(bench, *QUERIES), frames)
    loads = Counter(action.weight for action in device.actions if isinstance(action, Load))
    assert loads == dict.fromkeys(bench.plan.weight_bytes, 1)
    computed = [frame for action in device.actions if isinstance(action, Infer) for frame in action.frames]
    assert sorted(computed) == [frame.frame for frame in frames]


def test_frames_that_nobody_waits_for_are_not_computed(bench):
    frames = rounds_of_frames()
    verdicts, device = serve(bench, budget_for(bench, *QUERIES[1:3]), frames, withdrawn=frames[1::2])
    assert len(verdicts) == len(frames)
    assert {verdict.frame for verdict in verdicts if isinstance(verdict, Answered)} == {*frames[::2]}
    assert {verdict.reason for verdict in verdicts if isinstance(verdict, Dropped)} == {"withdrawn"}
    computed = [frame for action in device.actions if isinstance(action, Infer) for frame in action.frames]
    assert sorted(computed) == [frame.frame for frame in frames[::2]]


@pytest.mark.parametrize("wrong", [ForgetfulLedger, LeakyLedger])
def test_a_wrong_ledger_is_found_out_by_an_account_of_ones_own(bench, wrong):
    """The device grants what its ledger says is free. With a scheduler that keeps to the budget nothing would show, so
    this loads one query after the other and evicts only when refused; a true ledger passes, a wrong one does not."""
    budget_bytes = budget_for(bench, *QUERIES[1:3])
    swap_until_refused(bench, budget_bytes, Ledger)
    with pytest.raises(AssertionError):
        swap_until_refused(bench, budget_bytes, wrong)


@pytest.mark.parametrize("wrong", [ForgetfulLedger, LeakyLedger])
def test_a_wrong_ledger_shows_in_the_memory_of_a_real_device(bench, wrong):
    if bench.held_bytes(probe := bench.device(1)) is None:
        pytest.skip("a simulated device has no memory of its own")
    assert bench.held_bytes(probe) == 0
    budget_bytes = budget_for(bench, *QUERIES[1:3])
    assert most_held_bytes(bench, budget_bytes, Ledger) <= budget_bytes
    assert most_held_bytes(bench, budget_bytes, wrong) > budget_bytes


def swap_until_refused(bench, budget_bytes, ledger):
    """All queries' weights, twice, oldest evicted first, on an audited device."""
    for _ in swapping(Audit(bench.device(budget_bytes, ledger=ledger), bench), bench.plan):
        pass


def most_held_bytes(bench, budget_bytes, ledger):
    """The most bytes that were really allocated on the way."""
    device = bench.device(budget_bytes, ledger=ledger)
    return max(bench.held_bytes(device) for _ in swapping(device, bench.plan))


def swapping(device, plan):
    """Load every weight in turn, twice, evicting the oldest only when refused; yields after each load."""
    held = []
    for weight in [*plan.weight_bytes, *plan.weight_bytes]:
        if weight in held:
            continue
        start_evicting(device, Load(weight, plan.weight_bytes[weight], 1.0), held)
        held.append(weight)
        while getattr(device.next_event(), "action", None) is None:
            pass
        yield weight


def start_evicting(device, load, held):
    while True:
        try:
            return device.start(load)
        except OverBudgetError:
            device.start(Evict(held.pop(0)))

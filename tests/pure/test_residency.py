"""Residency and eviction: all that is needed is there, the budget holds, and nobody could have loaded less."""

import math
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.eviction import EVICTIONS, turns_ahead, turns_of
from gemel_ray.policy.residency import plan_ahead, plan_swap
from gemel_ray.spec.errors import OverBudgetError


@st.composite
def memories(draw):
    """Weights, what is resident and needed of them, what must stay, and how far off each next use is."""
    names = [f"w{place}" for place in range(draw(st.integers(1, 10)))]
    subset = st.lists(st.sampled_from(names), unique=True)
    resident = set(draw(subset))
    weight_bytes = {name: draw(st.integers(0, 20)) for name in names}
    return {
        "resident": resident,
        "needed": draw(st.lists(st.sampled_from(names), max_size=8)),
        "weight_bytes": weight_bytes,
        "budget_bytes": draw(st.integers(0, 120)),
        "next_use": {name: draw(st.integers(0, 5)) for name in names}.get,
        "pinned": draw(subset),
    }


def total(weights, weight_bytes):
    return sum(weight_bytes[weight] for weight in weights)


@given(memories())
def test_after_any_swap_all_needed_weights_are_resident_and_the_budget_holds(memory):
    weight_bytes, needed, resident = memory["weight_bytes"], {*memory["needed"]}, memory["resident"]
    pinned = resident.intersection(memory["pinned"])
    if total(needed | pinned, weight_bytes) > memory["budget_bytes"]:
        with pytest.raises(OverBudgetError, match="raise the budget"):
            plan_swap(**memory)
        return
    swap = plan_swap(**memory)
    after = resident - {*swap.evict} | {*swap.load}
    assert needed | pinned <= after
    assert total(after, weight_bytes) <= memory["budget_bytes"]
    assert set(swap.load) == needed - resident
    assert set(swap.evict) <= resident - needed - pinned


@given(memories())
def test_a_swap_ahead_loads_only_what_fits_and_keeps_what_is_pinned_or_needed(memory):
    weight_bytes, needed, resident = memory["weight_bytes"], {*memory["needed"]}, memory["resident"]
    kept = resident.intersection({*memory["pinned"], *needed})
    swap = plan_ahead(**memory)
    after = resident - {*swap.evict} | {*swap.load}
    assert kept <= after
    assert set(swap.load) <= needed - resident
    assert total(after, weight_bytes) <= max(memory["budget_bytes"], total(kept, weight_bytes))


@given(memories())
def test_weights_load_in_the_order_they_are_needed_and_no_eviction_is_idle(memory):
    swap = plan_ahead(**memory)
    wanted = list(dict.fromkeys(memory["needed"]))
    assert list(swap.load) == [weight for weight in wanted if weight in swap.load]
    after = memory["resident"] - {*swap.evict} | {*swap.load}
    free_bytes = memory["budget_bytes"] - total(after, memory["weight_bytes"])
    assert all(memory["weight_bytes"][victim] > free_bytes for victim in swap.evict)


def test_what_has_no_next_use_goes_before_what_is_used_last():
    options = {
        "weight_bytes": dict.fromkeys("abcd", 1),
        "budget_bytes": 3,
        "next_use": {"a": 1, "b": 9, "c": math.inf}.get,
    }
    assert plan_swap("abc", ["d"], **options).evict == ("c",)
    assert plan_swap("ab", ["c", "d"], **options).evict == ("b",)


def test_of_equally_far_weights_the_largest_goes_so_that_few_are_moved():
    options = {"budget_bytes": 8, "next_use": {"a": 2, "b": 2, "c": 2}.get}
    assert plan_swap("abc", ["d"], {"a": 1, "b": 4, "c": 2, "d": 3}, **options).evict == ("b",)


def test_a_far_weight_is_spared_when_a_later_choice_has_made_room_enough():
    # z goes first but is too small, y makes room for all by itself.
    options = {"budget_bytes": 12, "next_use": {"z": 9, "y": 3, "x": 1}.get}
    assert plan_swap("xyz", ["new"], {"x": 1, "y": 10, "z": 1, "new": 10}, **options).evict == ("y",)


def loads_of(requests, slots):
    """Weights of one byte that the policy loads for these requests, knowing all of them."""
    resident, loads = set(), 0
    for now, needed in enumerate(requests):
        next_use = {w: next((t for t in range(now, len(requests)) if w in requests[t]), math.inf) for w in resident}
        one_byte = dict.fromkeys({*resident, *needed}, 1)
        swap = plan_swap(resident, sorted(needed), one_byte, budget_bytes=slots, next_use=next_use.get)
        resident = resident - {*swap.evict} | {*swap.load}
        loads += len(swap.load)
    return loads


def fewest_loads(requests, slots):
    """By trying every choice of what to keep."""

    @cache
    def from_here(now, resident):
        if now == len(requests):
            return 0
        needed = requests[now]
        others, room = resident - needed, slots - len(needed)
        kept_at_most = min(room, len(others))
        choices = (frozenset(kept) | needed for kept in combinations(sorted(others), kept_at_most))
        return len(needed - resident) + min(from_here(now + 1, after) for after in choices)

    return from_here(0, frozenset())


@given(
    st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1, max_size=3), min_size=1, max_size=9),
    st.integers(3, 5),
)
def test_nobody_loads_fewer_weights_of_equal_size(requests, slots):
    assert loads_of(requests, slots) == fewest_loads(requests, slots)


@given(st.lists(st.lists(st.sampled_from("abcd")), min_size=1, max_size=6))
def test_turns_ahead_count_to_the_next_turn_that_needs_a_weight(order):
    turns = turns_of(order)
    assert set(turns) == {weight for needed in order for weight in needed}
    for weight, needing in turns.items():
        for turn in range(len(order)):
            ahead = turns_ahead(needing, turn, len(order))
            assert weight in order[(turn + ahead) % len(order)]
            assert all(weight not in order[(turn + step) % len(order)] for step in range(ahead))


def test_each_eviction_policy_sends_its_own_weight_first():
    # Turns ahead and turns ago.
    weights = {"soon and old": (1, 5), "far and fresh": (6, 0), "between": (3, 2)}
    first = {
        name: max(weights, key=lambda weight, goes=goes: goes(*weights[weight])) for name, goes in EVICTIONS.items()
    }
    assert first == {
        "furthest_next_use": "far and fresh",
        "least_recently_used": "soon and old",
        "most_recently_used": "far and fresh",
    }

"""GEMEL's greedy search, the baseline: it ends, tries everything, and halves what fails."""

from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.greedy import advance_greedy, begin_greedy, greedy_candidate
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.layers import LayerGroup, LayerRef

BIG = SearchSettings(max_trials=10_000, max_steps=10)


def groups_of(sizes, queries="abcd"):
    return [
        LayerGroup(f"s{place}", tuple(LayerRef(query, f"s{place}") for query in queries), size)
        for place, size in enumerate(sizes)
    ]


def run(groups, refuses, settings=BIG):
    state, tried = begin_greedy(groups, release=1, settings=settings), []
    while (candidate := greedy_candidate(state)) is not None:
        tried.append(candidate)
        members = {member for layer in candidate.configuration.shared for member in layer.members}
        passed = not members & refuses
        state = advance_greedy(state, candidate, passed=passed, release=state.release + 1)
    return state, tried


@given(st.lists(st.integers(1, 1000), max_size=10), st.sets(st.integers(0, 9)))
def test_what_nobody_refuses_is_shared_down_to_the_lightest_group(sizes, hard):
    refused = {LayerRef(query, f"s{place}") for place in hard for query in "abcd"}
    state, tried = run(groups_of(sizes), refused)
    shared = {layer.signature for layer in state.accepted.shared}
    assert shared == {f"s{place}" for place in range(len(sizes)) if place not in hard}
    first_tries = [candidate.configuration.shared for candidate in tried]
    assert len(first_tries) >= len(sizes)


def test_a_group_that_fails_is_halved_while_that_saves_more_than_the_next_one():
    state, _ = run(groups_of([100, 10]), {LayerRef("d", "s0")})
    assert {len(layer.members) for layer in state.accepted.shared if layer.signature == "s0"} == {2}
    narrow, _ = run(groups_of([100, 90]), {LayerRef("d", "s0")})
    assert {layer.signature for layer in narrow.accepted.shared} == {"s1"}


def test_the_budget_ends_it():
    _, tried = run(groups_of([5, 4, 3]), set(), SearchSettings(max_trials=2, max_steps=10))
    assert len(tried) == 2

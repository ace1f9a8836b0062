"""The search policy: what it accepts, that it ends, that it can be taken up again."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.policy.search import SearchBudget, SearchState, advance, begin, is_finished, winner
from gemel_ray.spec.layers import LayerGroup, LayerRef
from gemel_ray.spec.trials import Outcome


def groups_of(sizes):
    return tuple(
        LayerGroup(f"s{place}", (LayerRef("a", f"l{place}"), LayerRef("b", f"l{place}")), size)
        for place, size in enumerate(sorted(sizes, reverse=True))
    )


def judge(candidate, hard, needs_training):
    """A world in which some groups can never be shared and some only after training."""
    signatures = {layer.signature for layer in candidate.configuration.shared}
    passed = not signatures & hard and (candidate.max_steps > 0 or not signatures & needs_training)
    return Outcome(candidate=candidate.number, passed=passed, reason="passed" if passed else "missed on validation")


def run(state, hard=frozenset(), needs_training=frozenset(), *, interrupt=False):
    history = []
    while not is_finished(state):
        if interrupt:
            state = SearchState.model_validate_json(state.model_dump_json())
        outcomes = {candidate.number: judge(candidate, hard, needs_training) for candidate in state.round}
        history += [candidate.label for candidate in state.round]
        won = winner(state, outcomes)
        state = advance(state, outcomes, release=state.release + (won is not None))
    return state, history


SIZES = st.lists(st.integers(1, 10**6), min_size=1, max_size=14)
BIG = SearchBudget(max_trials=10_000, max_steps=10)


@given(SIZES, st.sets(st.integers(0, 13)), st.sets(st.integers(0, 13)))
def test_everything_that_can_be_shared_is_shared_and_nothing_else(sizes, hard, trainable):
    hard_signatures = {f"s{place}" for place in hard}
    state, _ = run(begin(groups_of(sizes), release=1, budget=BIG), hard_signatures, {f"s{p}" for p in trainable})
    expected = tuple(place for place in range(len(sizes)) if place not in hard)
    assert state.accepted == expected
    assert state.rejected == tuple(sorted(place for place in hard if place < len(sizes)))


@given(SIZES, st.sets(st.integers(0, 13)), st.integers(1, 12))
def test_never_runs_more_trials_than_allowed(sizes, hard, trials):
    budget = SearchBudget(max_trials=trials, max_steps=10)
    state, history = run(begin(groups_of(sizes), release=1, budget=budget), {f"s{place}" for place in hard})
    assert len(history) == state.trials <= trials


@given(SIZES, st.sets(st.integers(0, 13)))
@settings(max_examples=50)
def test_a_search_written_down_after_every_round_ends_the_same(sizes, hard):
    signatures = {f"s{place}" for place in hard}
    start = begin(groups_of(sizes), release=1, budget=BIG, seed=3)
    assert run(start, signatures) == run(start, signatures, interrupt=True)


def test_the_lightest_group_is_tried_too():
    state, history = run(begin(groups_of([1, 1000]), release=1, budget=BIG), hard={"s0"})
    assert state.accepted == (1,)
    assert any(label.endswith("group 1") for label in history)


def test_a_family_is_done_after_one_round():
    state, history = run(begin(groups_of([5, 4, 3]), release=1, budget=BIG))
    assert state.accepted == (0, 1, 2)
    assert state.release == 2
    assert all(label.startswith("probe") for label in history)


def test_without_groups_there_is_nothing_to_search():
    assert is_finished(begin((), release=1, budget=BIG))

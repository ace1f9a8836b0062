"""The search policy: what it accepts, that it ends, that it can be taken up again."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.policy.search import SearchSettings, SearchState, advance, begin, is_finished, is_superseded, winner
from gemel_ray.spec.layers import LayerGroup, LayerRef
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import SUPERSEDED, Outcome


def group_of(signature, size, queries="ab"):
    return LayerGroup(signature, tuple(LayerRef(query, signature) for query in queries), size)


def groups_of(sizes, queries="ab"):
    return tuple(group_of(f"s{place}", size, queries) for place, size in enumerate(sorted(sizes, reverse=True)))


class World:
    """Some layers of some queries can never be shared, some groups only after training."""

    def __init__(self, hard=(), trainable=()):
        self.hard, self.trainable = set(hard), set(trainable)

    def judge(self, candidate):
        members = [member for layer in candidate.configuration.shared for member in layer.members]
        hard = sorted({m.query for m in members if m.layer in self.hard or (m.query, m.layer) in self.hard})
        untrained = {m.query for m in members if m.layer in self.trainable} if not candidate.max_steps else set()
        passed = not hard and not untrained
        return Outcome(
            candidate=candidate.number, passed=passed, reason="passed" if passed else "missed", objectors=tuple(hard)
        )


def run(state, world, *, interrupt=False, skip=False):
    history = []
    while not is_finished(state):
        if interrupt:
            state = SearchState.model_validate_json(state.model_dump_json())
        outcomes = {}
        for candidate in state.round:
            if skip and is_superseded(state, candidate, outcomes):
                outcomes[candidate.number] = Outcome(candidate=candidate.number, passed=False, reason=SUPERSEDED)
                continue
            outcomes[candidate.number] = world.judge(candidate)
            history.append(candidate)
        won = winner(state, outcomes)
        state = advance(state, outcomes, release=state.release + (won is not None))
    return state, history


SIZES = st.lists(st.integers(1, 10**6), min_size=1, max_size=14)
PLACES = st.sets(st.integers(0, 13).map(lambda place: f"s{place}"))
BIG = SearchSettings(max_trials=10_000, max_steps=10)


def shared_signatures(state):
    return {layer.signature for layer in state.accepted.shared}


@given(SIZES, PLACES, PLACES)
def test_everything_that_can_be_shared_is_shared_and_nothing_else(sizes, hard, trainable):
    state, _ = run(begin(groups_of(sizes), release=1, settings=BIG), World(hard, trainable))
    every = {f"s{place}" for place in range(len(sizes))}
    assert shared_signatures(state) == every - hard
    assert {layer.signature for layer in state.rejected} == every & hard


@given(SIZES, st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 13).map(lambda place: f"s{place}"))))
def test_only_the_queries_that_object_are_left_out(sizes, hard):
    state, _ = run(begin(groups_of(sizes, "abc"), release=1, settings=BIG), World(hard))
    for group in groups_of(sizes, "abc"):
        willing = [member for member in group.members if tuple(member) not in hard]
        found = [set(layer.members) for layer in state.accepted.shared if layer.signature == group.signature]
        assert found == ([set(willing)] if len(willing) > 1 else [])


@given(SIZES, PLACES, st.integers(1, 12))
def test_never_runs_more_trials_than_allowed(sizes, hard, trials):
    settings = SearchSettings(max_trials=trials, max_steps=10)
    state, history = run(begin(groups_of(sizes), release=1, settings=settings), World(hard))
    assert sum(candidate.max_steps > 0 for candidate in history) == state.trials <= trials


@given(SIZES, PLACES)
@settings(max_examples=50)
def test_a_search_written_down_after_every_round_ends_the_same(sizes, hard):
    start = begin(groups_of(sizes), release=1, settings=BIG, seed=3)
    assert run(start, World(hard)) == run(start, World(hard), interrupt=True)


@given(SIZES, PLACES, PLACES)
def test_leaving_out_what_is_superseded_changes_nothing(sizes, hard, trainable):
    start = begin(groups_of(sizes, "abc"), release=1, settings=BIG)
    world = World(hard, trainable)
    plain, skipped = run(start, world)[0], run(start, world, skip=True)[0]
    assert plain.accepted == skipped.accepted


@given(SIZES, PLACES)
def test_no_configuration_is_trained_twice(sizes, hard):
    _, history = run(begin(groups_of(sizes, "abcd"), release=1, settings=BIG), World(hard))
    trained = [candidate.configuration for candidate in history if candidate.max_steps]
    assert len(trained) == len({configuration.model_dump_json() for configuration in trained})


def test_the_lightest_group_is_tried_too():
    state, history = run(begin(groups_of([1, 1000]), release=1, settings=BIG), World({"s0"}))
    assert shared_signatures(state) == {"s1"}
    assert history[-1].configuration.saved_bytes == 1


def test_a_family_is_done_after_one_round():
    groups = groups_of([5, 4, 3])
    state, history = run(begin(groups, release=1, settings=BIG, relatives=groups), World(), skip=True)
    assert state.accepted == MergeConfiguration.of(groups)
    assert [candidate.max_steps for candidate in history] == [0]


def test_relatives_are_shared_without_training_where_strangers_cannot_be():
    groups = groups_of([5, 4, 3], "abcd")
    relatives = [group_of(group.signature, group.layer_bytes, pair) for group in groups for pair in ("ab", "cd")]

    class Kin(World):
        def judge(self, candidate):
            mixed = [layer for layer in candidate.configuration.shared if len(layer.members) > 2]
            return Outcome(candidate=candidate.number, passed=not mixed, reason="missed" if mixed else "passed")

    state, history = run(begin(groups, release=1, settings=BIG, relatives=relatives), Kin())
    assert state.accepted.saved_bytes == 24
    assert any(not candidate.max_steps and candidate.configuration == state.accepted for candidate in history)


def test_repeats_within_a_model_come_on_top_of_what_models_share():
    groups = groups_of([8, 4])
    within = LayerGroup("s0", (LayerRef("a", "s0"), LayerRef("a", "s0b"), LayerRef("b", "s0"), LayerRef("b", "s0b")), 8)
    state, _ = run(begin(groups, release=1, settings=BIG, beyond=(within, groups[1])), World())
    assert state.accepted.saved_bytes == 3 * 8 + 4
    narrow, _ = run(begin(groups, release=1, settings=BIG, beyond=(within, groups[1])), World({("a", "s0b")}))
    assert narrow.accepted.saved_bytes == 2 * 8 + 4


def test_without_groups_there_is_nothing_to_search():
    assert is_finished(begin((), release=1, settings=BIG))

"""The search policy: what it accepts, that it ends, that it can be taken up again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.policy.evidence import judged
from gemel_ray.policy.judging import is_superseded, winner
from gemel_ray.policy.search import advance, begin, is_finished
from gemel_ray.policy.search_state import SearchSettings, SearchState
from gemel_ray.spec.layers import Extent, LayerGroup, LayerRef, Tensor
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Accuracy
from gemel_ray.spec.trials import SUPERSEDED, Outcome


def group_of(signature, size, queries="ab", rank_bytes=0):
    return LayerGroup(signature, tuple(LayerRef(query, signature) for query in queries), size, rank_bytes)


def groups_of(sizes, queries="ab", rank_bytes=0):
    ordered = enumerate(sorted(sizes, reverse=True))
    return tuple(group_of(f"s{place}", size, queries, rank_bytes) for place, size in ordered)


class World:
    """Some layers of some queries can never be shared, some groups only after training.

    `tamed`: hard layers become willing with private corrections. Each hard layer keeps its queries `far` more below
    their target.
    """

    def __init__(self, hard=(), trainable=(), *, tamed=False, far=None):
        self.hard, self.trainable, self.tamed, self.far = set(hard), set(trainable), tamed, far

    def judge(self, candidate):
        plain = [layer for layer in candidate.configuration.shared if not (self.tamed and layer.rank)]
        members = [member for layer in plain for member in layer.members]
        resists = [m for m in members if m.layer in self.hard or (m.query, m.layer) in self.hard]
        hard = sorted({member.query for member in resists})
        untrained = {m.query for m in members if m.layer in self.trainable} if not candidate.max_steps else set()
        passed = not hard and not untrained
        return Outcome(
            candidate=candidate.number, passed=passed, reason="passed" if passed else "missed", objectors=tuple(hard),
            shortfall=None if passed or self.far is None else self.far * len({member.layer for member in resists}),
        )  # fmt: skip


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


@given(SIZES, PLACES, PLACES, st.sampled_from([None, 0.02, 0.2]))
def test_everything_that_can_be_shared_is_shared_and_nothing_else(sizes, hard, trainable, far):
    state, _ = run(begin(groups_of(sizes), release=1, settings=BIG), World(hard, trainable, far=far))
    every = {f"s{place}" for place in range(len(sizes))}
    assert shared_signatures(state) == every - hard
    assert {layer.signature for layer in state.rejected} == every & hard


@given(SIZES, PLACES, PLACES)
def test_relatives_are_sifted_before_anything_is_trained_and_nothing_is_rejected_by_it(sizes, hard, trainable):
    found = groups_of(sizes)
    state, history = run(begin(found, relatives=found, release=1, settings=BIG), World(hard, trainable))
    every = {f"s{place}" for place in range(len(sizes))}
    assert shared_signatures(state) == every - hard
    assert {layer.signature for layer in state.rejected} == every & hard
    trained = [candidate.max_steps > 0 for candidate in history]
    assert trained == sorted(trained)
    assert trained.count(False) <= 13


def test_the_heavier_half_of_relatives_is_shared_as_it_is_where_the_lighter_one_must_be_trained():
    found = groups_of([40, 30, 20, 10])
    state, history = run(begin(found, relatives=found, release=1, settings=BIG), World(trainable=["s2", "s3"]))
    sifted = [candidate for candidate in history if candidate.label.startswith("sift")]
    trained = [candidate for candidate in history if candidate.max_steps]
    assert {layer.signature for layer in sifted[0].configuration.shared} == {"s0", "s1"}
    assert all(candidate.start_release == 2 for candidate in trained), "trials go on from what was sifted"
    assert shared_signatures(state) == {"s0", "s1", "s2", "s3"}
    _, strangers = run(begin(found, release=1, settings=BIG), World(trainable=["s2", "s3"]))
    assert not any(candidate.label.startswith("sift") for candidate in strangers)


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
    found = groups_of(sizes)
    start = begin(found, relatives=found[::2], release=1, settings=BIG, seed=3)
    assert run(start, World(hard)) == run(start, World(hard), interrupt=True)


@given(SIZES, PLACES, PLACES, st.sampled_from([None, 0.02, 0.1, 0.2]))
def test_leaving_out_what_is_superseded_changes_nothing(sizes, hard, trainable, far):
    found = groups_of(sizes, "abc")
    start = begin(found, relatives=found[::2], release=1, settings=BIG)
    world = World(hard, trainable, far=far)
    plain, skipped = run(start, world)[0], run(start, world, skip=True)[0]
    assert plain == skipped


# One layer of 1 % of the bytes is all that resists.
HARDEST = groups_of([50, 49, 1])


def leap(far):
    """The wholes that a leap tries when that layer keeps its queries so far below their target."""
    state, history = run(begin(HARDEST, release=1, settings=BIG), World({"s2"}, {"s0", "s1"}, far=far), skip=True)
    assert shared_signatures(state) == {"s0", "s1"}
    return [len(each.configuration.shared) for each in history if each.label.startswith("leap")]


def test_a_hopeless_whole_is_not_tried_again_without_its_hardest_layers():
    assert leap(far=0.1) == [3, 2]
    assert leap(far=0.2) == [3]


def test_what_was_hopeless_among_relatives_is_not_leapt_for_again_without_its_hardest_layers():
    start = begin(HARDEST, relatives=HARDEST, release=1, settings=BIG)
    _, history = run(start, World({"s2"}, {"s0", "s1"}, far=0.2), skip=True)
    wholes = [(each.label.split()[0], len(each.configuration.shared)) for each in history if each.max_steps]
    assert [found for found in wholes if found[0] != "divide"] == [("kin", 3)]


def test_what_a_hopeless_whole_rules_out_is_not_accepted_even_if_it_passed_beside_it():
    state = begin(HARDEST, release=1, settings=BIG)
    while state.phase != "leap":
        state = advance(
            state, {c.number: Outcome(candidate=c.number, passed=False, reason="") for c in state.round}, release=1
        )
    whole, most = state.round
    outcomes = {
        whole.number: Outcome(candidate=whole.number, passed=False, reason="hopeless", shortfall=0.2, steps=75),
        most.number: Outcome(candidate=most.number, passed=True, reason="passed", steps=90),
    }
    assert is_superseded(state, most, {whole.number: outcomes[whole.number]})
    assert winner(state, outcomes) is None
    assert advance(state, outcomes, release=1).steps == 75


@pytest.mark.parametrize(("far", "heaviest"), [(0.1, 4), (0.2, 2)])
def test_of_what_was_hopeless_the_heavier_half_is_not_tried_whole(far, heaviest):
    eight = groups_of(range(1, 9))
    state, history = run(begin(eight, release=1, settings=BIG), World({"s0"}, {"s1"}, far=far), skip=True)
    first = next(each for each in history if each.label.startswith("divide"))
    assert first.configuration == MergeConfiguration.of(eight[:heaviest])
    assert shared_signatures(state) == {f"s{place}" for place in range(1, 8)}


def test_of_slices_that_were_hopeless_the_heavier_half_is_tried_whole():
    def sliced(place, size):
        members = LayerRef("a", f"s{place}"), LayerRef("b", f"s{place}")
        tensors = (Tensor("weight", (held,), held) for held in (2 * size, size))
        extents = tuple(Extent(member, (tensor,)) for member, tensor in zip(members, tensors, strict=True))
        return LayerGroup(f"s{place}", members, 2 * size, extents=extents)

    eight = tuple(sliced(8 - size, size) for size in range(8, 0, -1))
    _, history = run(begin((), widest=eight, release=1, settings=BIG), World({"s0"}, {"s1"}, far=0.2), skip=True)
    first = next(each for each in history if each.label.startswith("divide"))
    assert len(first.configuration.shared) == 4


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


def sliced_group(*sizes):
    """Layers of two models, of these many rows each, in slices of the largest."""
    extents = tuple(
        Extent(LayerRef(query, f"s{place}"), (Tensor("weight", (size,), size),))
        for query in "ab"
        for place, size in enumerate(sizes)
    )
    return LayerGroup("sliced", tuple(extent.member for extent in extents), max(sizes), extents=extents)


def test_slices_are_tried_once_repeats_share_and_then_in_parts():
    groups, widest = groups_of([8, 4]), sliced_group(8, 4)
    state, history = run(begin(groups, beyond=groups, widest=(widest,), release=1, settings=BIG), World())
    assert state.accepted.saved_bytes == 8 + 4 + 4
    assert history[-1].label == "widen 4 layers, some as slices of others, of 2 queries"
    state, history = run(begin(groups, widest=(widest,), release=1, settings=BIG), World({("b", "s1")}))
    assert state.accepted.saved_bytes == 8 + 4
    (shared,) = state.accepted.shared
    assert {str(member) for member in shared.members} == {"a:s0", "b:s0", "a:s1"}
    assert state.accepted.slices_of("a") == {"s1": {"weight": (4,)}}


def test_no_slices_are_tried_where_repeats_do_not_share():
    groups, widest = groups_of([8, 4]), sliced_group(8, 4)
    hard = World({("b", "s0"), ("a", "s1")})
    state, history = run(begin(groups, beyond=groups, widest=(widest,), release=1, settings=BIG), hard)
    assert state.accepted.saved_bytes == 0
    assert not any("slices" in candidate.label for candidate in history)


def test_without_groups_there_is_nothing_to_search():
    assert is_finished(begin((), release=1, settings=BIG))


@given(SIZES, PLACES)
def test_hard_layers_are_shared_with_private_corrections_where_these_cost_less_than_they_save(sizes, hard):
    state, _ = run(begin(groups_of(sizes, rank_bytes=1000), release=1, settings=BIG), World(hard, tamed=True))
    weighed = {f"s{place}": size for place, size in enumerate(sorted(sizes, reverse=True))}
    corrected = {layer.signature for layer in state.accepted.shared if layer.rank}
    worth = {name for name, size in weighed.items() if size > 2 * 1000 * BIG.delta_rank}
    assert corrected == hard & worth
    assert shared_signatures(state) == (weighed.keys() - hard) | corrected
    assert state.accepted.saved_bytes == sum(
        size - 2 * 1000 * BIG.delta_rank * (name in corrected)
        for name, size in weighed.items()
        if name in shared_signatures(state)
    )


@given(SIZES, PLACES)
def test_without_a_rank_nothing_is_corrected(sizes, hard):
    plain = BIG.model_copy(update={"delta_rank": 0})
    state, _ = run(begin(groups_of(sizes, rank_bytes=1), release=1, settings=plain), World(hard, tamed=True))
    assert not any(layer.rank for layer in state.accepted.shared)


def test_the_search_says_how_good_its_prediction_was():
    groups = groups_of([50, 30, 20])
    state, _ = run(begin(groups, relatives=groups[:2], release=1, settings=BIG), World({"s1"}))
    found = judged(state)
    assert (found.predicted_bytes, found.kept_bytes) == (80, 50)
    assert (found.possible_bytes, found.accepted_bytes) == (100, 70)
    assert "80.0 % of what models could share was said to; 62.5 % of that does, and 100.0 % of the rest" in found.told()
    assert judged(begin((), release=1, settings=BIG)).told().count("nothing") == 3


@pytest.mark.parametrize("asked", ["aligned", "member"])
def test_strangers_start_from_where_they_are_told_to_until_something_is_shared(asked):
    chosen = BIG.model_copy(update={"start": asked})
    sizes, world = groups_of([50, 30, 20, 10]), World({"s0", "s3"}, {"s1", "s2"})
    _, history = run(begin(sizes, release=1, settings=chosen), world)
    tried = [c for c in history if c.max_steps]
    assert {(c.start, c.learning_rate) for c in tried if c.start_release == 1} == {(asked, 1e-3)}
    assert {(c.start, c.learning_rate) for c in tried if c.start_release > 1} == {("mean", 3e-4)}
    _, history = run(begin(sizes, relatives=sizes, release=1, settings=chosen), world)
    assert all(c.start == "mean" for c in history if c.label.startswith("divide"))


class Slow(World):
    """Everything passes after so many steps, and comes close to its target before, on validation or on the gate."""

    def __init__(self, steps, shortfall=0.02, gate=None):
        super().__init__()
        self.steps, self.shortfall, self.gate = steps, shortfall, gate or {}

    def judge(self, candidate):
        steps = candidate.max_steps
        passed = steps >= self.steps
        reason = "passed" if passed else "missed on validation"
        return Outcome(
            candidate=candidate.number, passed=passed, reason=reason, steps=min(steps, self.steps), objectors=("a",),
            shortfall=0.0 if passed else self.shortfall, accuracies=self.gate,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("patience", "shortfall", "shares_all_at_once"), [(3, 0.02, True), (3, 0.1, False), (1, 0.02, False)]
)
def test_a_whole_that_failed_close_to_its_target_gets_more_steps_before_anything_is_divided(
    patience, shortfall, shares_all_at_once
):
    settings = SearchSettings(max_trials=6, max_steps=10, patience=patience)
    state, history = run(begin(groups_of([9, 5, 3]), release=1, settings=settings), Slow(25, shortfall))
    assert (len(state.accepted.shared) == 3) is shares_all_at_once
    assert max(candidate.max_steps for candidate in history) == (30 if shares_all_at_once else 10)


def test_a_whole_that_the_gate_refused_is_divided_at_once():
    refused = {
        "a": Accuracy(target=0.9, measure="", agreement=0.89, lower_bound=0.8, gate_frames=100, validation_agreement=1)
    }
    settings = SearchSettings(max_trials=6, max_steps=10)
    _, history = run(begin(groups_of([9, 5, 3]), release=1, settings=settings), Slow(25, gate=refused))
    assert {candidate.max_steps for candidate in history if candidate.label.startswith("divide")} == {10}
    assert not any(candidate.label.startswith("persist") for candidate in history)


@pytest.mark.parametrize(("views", "overfit"), [(True, 0.2), (True, 0.03), (False, 0.2)])
def test_once_a_trial_knew_its_frames_by_heart_later_ones_learn_from_views(views, overfit):
    class Learned(World):
        def judge(self, candidate):
            return super().judge(candidate).model_copy(update={"overfit": overfit if candidate.max_steps else None})

    settings = SearchSettings(max_steps=10, views=views)
    _, history = run(begin(groups_of([9, 5, 3]), release=1, settings=settings), Learned(hard=["s0"]))
    rounds = [candidate.views for candidate in history if candidate.max_steps]
    assert not rounds[0]
    assert rounds[-1] is (views and overfit >= 0.1)


def test_parts_of_what_nearly_passed_come_before_larger_ones_of_what_was_hopeless():
    class Repeats(World):
        def judge(self, candidate):
            within = any(ref.layer.startswith("r") for layer in candidate.configuration.shared for ref in layer.members)
            found = super().judge(candidate)
            return found.model_copy(update={"passed": False, "shortfall": 0.5 if within else 0.05})

    across, beyond = groups_of([4, 3]), (group_of("r0", 40), group_of("r1", 30))
    settings = SearchSettings(max_steps=10, patience=1)
    state = begin(across, beyond=(*across, *beyond), release=1, settings=settings)
    _, history = run(state, Repeats())
    divided = [candidate.configuration.shared for candidate in history if candidate.label.startswith("divide")]
    assert all(layer.members[0].layer.startswith("s") for layer in divided[0])


@given(SIZES, PLACES, PLACES, st.integers(0, 200), st.booleans())
def test_no_more_steps_are_taken_than_were_given(sizes, hard, trainable, most_steps, skip):
    class Counting(World):
        def judge(self, candidate):
            knows_by_heart = 0.3 if candidate.seed % 3 == 0 and candidate.max_steps else None
            update = {"steps": candidate.max_steps, "overfit": knows_by_heart}
            return super().judge(candidate).model_copy(update=update)

    settings = SearchSettings(max_trials=10_000, max_steps=10, most_steps=most_steps)
    state, _ = run(begin(groups_of(sizes), release=1, settings=settings), Counting(hard, trainable), skip=skip)
    assert state.steps <= most_steps
    # What a trial took that may have been stopped, had more run beside it, is not charged.
    alone, _ = run(begin(groups_of(sizes), release=1, settings=settings), Counting(hard, trainable), skip=not skip)
    assert alone == state

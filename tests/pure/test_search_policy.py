"""The search policy: what it accepts, that it ends, that it can be taken up again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_world import BIG, PLACES, SIZES, World, group_of, groups_of, run, shared_signatures

from gemel_ray.policy.evidence import judged
from gemel_ray.policy.search import begin, is_finished
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.layers import Extent, LayerGroup, LayerRef, Tensor
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Accuracy
from gemel_ray.spec.trials import Outcome


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


@given(SIZES, PLACES, PLACES, st.integers(0, 200))
def test_every_step_that_one_trial_at_a_time_takes_is_charged(sizes, hard, trainable, most_steps):
    class Counting(World):
        def judge(self, candidate):
            return super().judge(candidate).model_copy(update={"steps": candidate.max_steps})

    settings = SearchSettings(max_trials=10_000, max_steps=10, most_steps=most_steps)
    start = begin(groups_of(sizes, "abc"), release=1, settings=settings)
    state, history = run(start, Counting(hard, trainable), skip=True)
    assert sum(candidate.max_steps for candidate in history) == state.steps <= most_steps

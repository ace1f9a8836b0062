"""What stays far below its target: what is not tried any more for it, and that this decides the same in any order."""

import itertools

import pytest
from search_world import BIG, World, group_of, groups_of, run, shared_signatures

from gemel_ray.policy.judging import is_superseded, winner
from gemel_ray.policy.search import advance, begin
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.layers import Extent, LayerGroup, LayerRef, Tensor
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import SUPERSEDED, Outcome

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


def leaping(across, beyond):
    """The state of a search whose leap has just been proposed."""
    state = begin(across, beyond=beyond, release=1, settings=BIG)
    while state.phase != "leap":
        missed = {c.number: Outcome(candidate=c.number, passed=False, reason="missed") for c in state.round}
        state = advance(state, missed, release=1)
    return state


def test_in_whatever_order_trials_end_the_same_one_wins():
    """Its whole may yet rule out a candidate that has passed: until then that one supersedes nothing."""
    across = groups_of([50, 49, 1])
    repeats = tuple(group_of(f"r{place}", size, queries="abcd") for place, size in enumerate([90, 80, 1]))
    state = leaping(across, (*across, *repeats))
    whole, most, smaller, *_ = state.round
    come_to = {
        whole.number: Outcome(candidate=whole.number, passed=False, reason="hopeless", shortfall=0.2, steps=5),
        most.number: Outcome(candidate=most.number, passed=True, reason="passed", steps=9),
    }
    found = set()
    for order in itertools.permutations([whole, most, smaller]):
        outcomes = {}
        for ended in order:
            for each in state.round:
                if each.number not in outcomes and each is not ended and is_superseded(state, each, outcomes):
                    outcomes[each.number] = Outcome(candidate=each.number, passed=False, reason=SUPERSEDED)
            passed = Outcome(candidate=ended.number, passed=True, reason="passed", steps=10)
            outcomes.setdefault(ended.number, come_to.get(ended.number, passed))
        for each in state.round:
            outcomes.setdefault(each.number, Outcome(candidate=each.number, passed=False, reason="missed"))
        found.add(winner(state, outcomes).number)
    assert found == {smaller.number}

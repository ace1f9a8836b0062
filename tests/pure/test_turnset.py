"""A set of turns: what a set of numbers is, walked round from any turn."""

from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.edge.turnset import TurnSet

TURNS = st.integers(0, 70)


def turnset(members):
    found = TurnSet()
    for turn in members:
        found.set(turn, True)
    return found


@given(st.lists(st.tuples(TURNS, st.booleans())), TURNS)
def test_it_holds_what_was_put_in_last_and_is_walked_round_from_any_turn(changes, first):
    found, wanted = TurnSet(), set()
    for turn, is_member in changes:
        found.set(turn, is_member)
        (wanted.add if is_member else wanted.discard)(turn)
    assert list(found.walk(first)) == sorted(wanted, key=lambda turn: (turn < first, turn))
    assert all((turn in found) == (turn in wanted) for turn in range(71))


@given(st.sets(TURNS), st.sets(TURNS))
def test_intersection_and_difference_are_those_of_sets(ones, others):
    one, other = turnset(ones), turnset(others)
    assert list((one & other).walk(0)) == sorted(ones & others)
    assert list((one - other).walk(0)) == sorted(ones - others)
    assert list(one.walk(0)) == sorted(ones)


def test_a_walk_goes_over_the_members_of_the_moment_it_began():
    found = turnset({0, 1, 2})
    walked = []
    for turn in found.walk(1):
        found.set(turn, False)
        walked.append(turn)
    assert walked == [1, 2, 0]

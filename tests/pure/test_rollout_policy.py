"""What a fleet changes next, and that it always gets where it should, one step at a time."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.policy.rollout import Absent, Change, NodeReport, Rules, decide, homes_now, usable

RULES = Rules(canary_s=5, grace_s=10)
HOMES = {"a": "x", "b": "x", "c": "y"}
LONG_AGO_S = 100.0


def node(release=None, queries=(), **more):
    return NodeReport(10**9, release, tuple(queries), **({"settled_s": LONG_AGO_S} | more))


def settled(release):
    return {"x": node(release, "ab"), "y": node(release, "c")}


def test_nothing_is_done_where_all_is_as_it_should_be():
    assert decide(settled(3), 3, HOMES, RULES).is_settled


def test_idle_nodes_get_their_queries_one_after_the_other():
    nodes = {"x": node(), "y": node()}
    assert decide(nodes, 1, HOMES, RULES).change == Change("x", 1, ("a", "b"), "nobody answers a, b")
    nodes["x"] = node(1, "ab")
    assert decide(nodes, 1, HOMES, RULES).change == Change("y", 1, ("c",), "nobody answers c")


def test_nobody_is_touched_while_one_changes():
    nodes = settled(1) | {"y": node(1, "c", busy="changing to release 2")}
    decision = decide(nodes, 2, HOMES, RULES)
    assert (decision.change, decision.waiting) == (None, "y: changing to release 2")


def test_a_new_release_goes_to_one_node_first_and_to_the_others_once_it_has_stood_the_test():
    nodes = settled(1)
    assert decide(nodes, 2, HOMES, RULES).change == Change("x", 2, ("a", "b"), "release 2 instead of 1")
    nodes["x"] = node(2, "ab", settled_s=4.9, former=1)
    decision = decide(nodes, 2, HOMES, RULES)
    assert (decision.change, decision.waiting) == (None, "x serves release 2 for 5 s before y may")
    nodes["x"] = node(2, "ab", settled_s=5, former=1)
    assert decide(nodes, 2, HOMES, RULES).change == Change("y", 2, ("c",), "release 2 instead of 1")


def test_a_release_that_fails_on_its_first_node_goes_back_and_no_further():
    nodes = settled(1) | {"x": node(2, "ab", settled_s=1, failed_frames=3, former=1)}
    change = decide(nodes, 2, HOMES, RULES).change
    assert change == Change("x", 1, ("a", "b"), "release 2 fails here", "3 frames failed since it is served")
    nodes["x"] = node(1, "ab", refused={2: "3 frames failed since it is served"}, former=2)
    decision = decide(nodes, 2, HOMES, RULES)
    assert decision.change is None
    assert decision.blocked == "release 2 on x: 3 frames failed since it is served"
    assert decision.is_settled
    # Once the refusal is over, it is tried there again.
    assert decide(nodes | {"x": node(1, "ab", former=2)}, 2, HOMES, RULES).change.release == 2


def test_a_release_that_a_node_refused_is_not_tried_on_another():
    nodes = settled(1) | {"x": node(1, "ab", refused={2: "damaged"})}
    assert decide(nodes, 2, HOMES, RULES).change is None
    assert decide(nodes, 3, HOMES, RULES).change.release == 3


def test_queries_of_a_lost_node_are_answered_elsewhere_first_of_all():
    lost = {"x": Absent("gone", True, 0.0), "y": node(1, "c")}
    homes = dict.fromkeys("abc", "y")
    assert decide(lost, 2, homes, RULES).change.queries == ("a", "b", "c")
    assert usable(lost, RULES) == ("y",)
    assert usable({"x": Absent("silent", False, 9.0), "y": node()}, RULES) == ("x", "y")
    assert usable({"x": Absent("silent", False, 11.0), "y": node()}, RULES) == ("y",)


def test_while_a_release_is_blocked_lost_queries_are_taken_over_at_the_one_that_is_served():
    nodes = {"x": node(1, "ab", refused={2: "damaged"}), "y": Absent("gone", True, 0.0)}
    change = decide(nodes, 2, dict.fromkeys("abc", "x"), RULES).change
    assert (change.release, change.queries) == (1, ("a", "b", "c"))


def test_a_query_moves_to_its_new_node_before_it_leaves_the_old_one():
    nodes = {"x": node(1, "ab"), "y": node(1, "c")}
    homes = {"a": "x", "b": "y", "c": "y"}
    assert decide(nodes, 1, homes, RULES).change == Change("y", 1, ("b", "c"), "b better here")
    nodes["y"] = node(1, "bc")
    assert decide(nodes, 1, homes, RULES).change == Change("x", 1, ("a",), "b answered elsewhere")


NAMES = ("x", "y", "z")
fleets = st.fixed_dictionaries(
    {name: st.tuples(st.sampled_from([None, 1, 2]), st.sets(st.sampled_from("abcd"))) for name in NAMES}
)


@settings(max_examples=200, deadline=None)
@given(fleets, st.fixed_dictionaries({q: st.sampled_from(NAMES) for q in "abcd"}), st.sampled_from([1, 2]))
def test_from_anywhere_every_step_done_leads_to_what_is_wanted_and_no_query_is_left_alone_meanwhile(now, homes, target):
    nodes = {
        name: node(release, sorted(queries)) if release and queries else node()
        for name, (release, queries) in now.items()
    }
    answered = set(homes_now(nodes))
    for _ in range(20):
        change = decide(nodes, target, homes, RULES).change
        if change is None:
            break
        former = nodes[change.node].release
        nodes[change.node] = replace(node(change.release, change.queries), former=former)
        assert answered <= set(homes_now(nodes))
        answered = set(homes_now(nodes))
    assert decide(nodes, target, homes, RULES).is_settled
    for name, report in nodes.items():
        assert set(report.queries) == {query for query, home in homes.items() if home == name}
        assert not report.queries or report.release == target

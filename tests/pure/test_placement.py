"""Placement: invariants, never worse than dealing in turn, few moves when a node goes or comes, refusals that help."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import Case, cases, profile

from gemel_ray.policy.fleet import fleet_of
from gemel_ray.policy.placement import deal_in_turn, place
from gemel_ray.policy.planning import ServedQuery
from gemel_ray.policy.relocation import Draft
from gemel_ray.spec.errors import InputError, OverBudgetError, ServingError
from gemel_ray.spec.placement import NodeCapacity, Placement


def score(placement):
    """More is better: how busy the worst node is, of no account below 1, then bytes spared."""
    return -round(max(1.0, *(node.pressure for node in placement.nodes), 0.0), 8), placement.spared_bytes


def uniform(count, nodes, *, load, size=10, memory_bytes=1000):
    """Queries alike, each taking that share of a node, with weights of their own."""
    queries = {f"q{place:02}": ServedQuery((f"w{place:02}",), 10.0, 1000.0) for place in range(count)}
    weights = {f"w{place:02}": size for place in range(count)}
    one = profile(dict.fromkeys(queries, (load * 100, 0)))
    boxes = [NodeCapacity(f"n{place}", memory_bytes) for place in range(nodes)]
    return Case(queries, weights, boxes, {box.name: one for box in boxes})


@settings(max_examples=50)
@given(cases())
def test_every_query_is_on_one_node_and_every_weight_is_counted_once_there(case):
    placement = case.placed()
    placement.verify()
    assert [query.name for query in placement.queries] == list(case.queries)
    for node in placement.nodes:
        used = [weight for name in node.queries for weight in case.queries[name].weights]
        assert node.weights_bytes == sum(case.weight_bytes[weight] for weight in set(used))
        assert node.shared_bytes == sum(case.weight_bytes[weight] for weight in set(used) if used.count(weight) > 1)
        costs = [case.profiles[node.name].queries[name] for name in node.queries]
        assert node.workspace_bytes == max((cost.workspace_bytes[1] for cost in costs), default=0)
        assert node.free_bytes == 0 or node.over_bytes == 0
        assert node.free_bytes - node.over_bytes == node.memory_bytes - node.weights_bytes - node.workspace_bytes


@settings(max_examples=50)
@given(cases())
def test_it_is_never_worse_than_dealing_in_turn(case):
    dealt = deal_in_turn(*case.arguments)
    dealt.verify()
    assert score(case.placed()) >= score(dealt)


@settings(max_examples=40)
@given(cases(), st.integers(0, 3))
def test_the_same_fleet_is_placed_the_same_way(case, seed):
    assert case.placed(seed=seed) == case.placed(seed=seed)


@settings(max_examples=40)
@given(cases())
def test_goodput_falls_as_one_over_what_is_asked_of_a_node(case):
    placement = case.placed()
    nodes = {node.name: node for node in placement.nodes}
    for query in placement.queries:
        node, asked = nodes[query.node], case.queries[query.name]
        device = case.profiles[node.name]
        patience_ms = asked.slo_ms - device.run_ms(query.name, 1)
        if patience_ms <= 0:
            assert query.goodput_fraction == 0
            continue
        pressure = (node.load_fraction + 1.15 * node.over_bytes / device.load_bytes_per_ms / patience_ms) / 0.85
        assert query.goodput_fraction == pytest.approx(min(1, 1 / pressure) if pressure else 1)
        assert pressure <= node.pressure + 1e-6


@settings(max_examples=40)
@given(cases(most_nodes=4))
def test_a_placement_that_is_there_already_is_kept_unless_the_worst_query_gains(case):
    first = case.placed()
    again = case.placed(current=first.node_of)
    assert again.node_of == first.node_of or score(again)[0] > score(first)[0]
    assert again.moved == tuple(name for name, node in again.node_of.items() if node != first.node_of[name])


@settings(max_examples=40)
@given(cases(), st.data())
def test_no_query_moves_that_could_as_well_have_stayed(case, data):
    current = {name: data.draw(st.sampled_from(case.nodes)).name for name in case.queries}
    found = case.placed(current=current)
    fleet = fleet_of(*case.arguments)
    numbers = {node.name: number for number, node in enumerate(case.nodes)}
    worst = max(1.0, *(node.pressure for node in found.nodes))
    for query, name in enumerate(fleet.queries):
        home = numbers[current[name]]
        if name in found.moved and home in fleet.allowed[query]:
            draft = Draft(fleet)
            for other, its_name in enumerate(fleet.queries):
                draft.put(other, home if other == query else numbers[found.node_of[its_name]])
            assert draft.boxes[home].pressure > worst


@settings(max_examples=40)
@given(st.integers(2, 5), st.integers(4, 14), st.data())
def test_when_a_node_goes_only_its_queries_move_where_there_is_room(nodes, count, data):
    # Less than half of what the others can compute, no query above that: on the emptiest one there is always room.
    case = uniform(count, nodes, load=0.4 * (nodes - 1) / count, memory_bytes=10 * count)
    first = case.placed()
    gone = data.draw(st.sampled_from([node.name for node in case.nodes]))
    after = case.without(gone).placed(current=first.node_of)
    assert set(after.moved) == {name for name, node in first.node_of.items() if node == gone}
    assert after.worst_goodput_fraction == 1.0
    # And when it comes back, nobody has a reason to move.
    assert case.placed(current=after.node_of).moved == ()


def test_when_a_node_comes_to_an_overloaded_fleet_just_enough_queries_move():
    case = uniform(12, 3, load=0.4)
    crowded = case.without("n2").placed()
    assert sorted(len(node.queries) for node in crowded.nodes) == [6, 6]
    relieved = case.placed(current=crowded.node_of)
    assert [len(node.queries) for node in relieved.nodes] == [4, 4, 4]
    assert len(relieved.moved) == 4
    assert relieved.worst_goodput_fraction == pytest.approx(0.85 / 1.6)
    assert crowded.worst_goodput_fraction == pytest.approx(0.85 / 2.4)


def test_queries_that_share_weights_come_together():
    queries = {f"q{place}": ServedQuery((f"own{place}", f"family{place % 3}"), 10.0, 1000.0) for place in range(9)}
    weights = {f"own{place}": 5 for place in range(9)} | {f"family{family}": 100 for family in range(3)}
    one = profile(dict.fromkeys(queries, (30.0, 7)))
    found = place(queries, weights, [NodeCapacity(f"n{place}", 200) for place in range(3)], one)
    families = [{int(name[1:]) % 3 for name in node.queries} for node in found.nodes]
    assert sorted(map(sorted, families)) == [[0], [1], [2]]
    assert found.spared_bytes == 6 * 100
    assert [(node.shared_bytes, node.private_bytes, node.free_bytes) for node in found.nodes] == [(100, 15, 78)] * 3
    assert found.queries[0].reason == "100 B of its 105 B are there for others too"


def test_the_faster_node_gets_more():
    case = uniform(9, 2, load=0.2)
    fast = profile(dict.fromkeys(case.queries, (10.0, 0)))
    case.profiles = {"n0": case.profiles["n0"], "n1": fast}
    found = case.placed()
    assert found.worst_goodput_fraction == 1.0
    assert [len(node.queries) for node in deal_in_turn(*case.arguments).nodes] == [5, 4]
    crowded = replace_load(case, 4.0).placed()
    assert [len(node.queries) for node in crowded.nodes] == [3, 6]


def replace_load(case, factor):
    faster = {name: replace(query, fps=query.fps * factor) for name, query in case.queries.items()}
    return Case(faster, case.weight_bytes, case.nodes, case.profiles)


def test_a_query_goes_where_it_is_in_time():
    queries = {"slow": ServedQuery(("a",), 1.0, 50.0), "other": ServedQuery(("b",), 1.0, 500.0)}
    devices = {"n0": profile({"slow": (60, 0), "other": (60, 0)}), "n1": profile({"slow": (40, 0), "other": (40, 0)})}
    found = place(queries, {"a": 1, "b": 1}, [NodeCapacity("n0", 9), NodeCapacity("n1", 9)], devices)
    assert found.node_of["slow"] == "n1"
    assert found.worst_goodput_fraction == 1.0


def test_a_query_that_is_late_everywhere_is_placed_and_told():
    case = uniform(3, 2, load=0.2)
    case.queries["q01"] = ServedQuery(("w01",), 10.0, 15.0)
    found = case.placed()
    assert [query.goodput_fraction for query in found.queries] == [1.0, 0.0, 1.0]
    assert "no node that holds it runs it within its SLO" in found.queries[1].reason


def test_queries_that_fit_no_node_are_named_with_what_they_lack():
    queries = {name: ServedQuery((name,), 1.0, 100.0) for name in ("small", "big", "huge")}
    weights = {"small": 10, "big": 90, "huge": 500}
    nodes = [NodeCapacity("n0", 50), NodeCapacity("n1", 80)]
    with pytest.raises(OverBudgetError) as told:
        place(queries, weights, nodes, profile(dict.fromkeys(queries, (1.0, 5))))
    first, second = str(told.value).splitlines()
    assert "'big' fits no node: alone it needs 95 bytes (90 of weights, 5 of workspace" in first
    assert "'n1', which comes nearest, offers 80; give a node 15 bytes more" in first
    assert "'huge'" in second


@pytest.mark.parametrize(
    ("nodes", "profiles", "error", "told"),
    [
        ([], ["q00"], InputError, "there is no node"),
        (["a", "a"], ["q00"], InputError, "2 nodes are named 'a'"),
        (["a"], {"b": ["q00"]}, InputError, "node 'a' has no profile"),
        (["a"], ["q0"], ServingError, r"for node 'a', lacks query 'q00' \(did you mean 'q0'"),
    ],
    ids=["no node", "twice", "no profile", "no query"],
)
def test_what_cannot_be_placed_is_told(nodes, profiles, error, told):
    def device(names):
        return profile(dict.fromkeys(names, (1.0, 0)))

    given_profiles = {node: device(each) for node, each in profiles.items()} if isinstance(profiles, dict) else None
    with pytest.raises(error, match=told):
        place(
            {"q00": ServedQuery(("w",), 1.0, 100.0)}, {"w": 1}, [NodeCapacity(name, 10) for name in nodes],
            given_profiles or device(profiles),
        )  # fmt: skip


def test_what_moves_and_what_stays_says_why():
    case = uniform(4, 2, load=0.1)
    found = case.placed(current={"q00": "n1", "q01": "gone", "q02": "n1"})
    assert [query.reason for query in found.queries] == [
        "stays; shares nothing with the others there",
        "moves from gone, which is gone or no longer fit for it; shares nothing with the others there",
        "stays; shares nothing with the others there",
        "shares nothing with the others there",
    ]
    assert found.moved == ("q01",)


PLACED = uniform(3, 2, load=0.1).placed()


@pytest.mark.parametrize(
    ("broken", "error", "told"),
    [
        ({"queries": PLACED.queries[:2]}, InputError, "its queries say otherwise"),
        ({"queries": (*PLACED.queries, PLACED.queries[0])}, InputError, "appears more than once"),
        ({"nodes": PLACED.nodes * 2}, InputError, "node 'n0' appears more than once"),
        ({"queries": tuple(replace(query, node="n9") for query in PLACED.queries)}, InputError, "none of the nodes"),
        ({"moved": ("q77",)}, InputError, "'q77' is said to have moved"),
        ({"nodes": tuple(replace(node, memory_bytes=1) for node in PLACED.nodes)}, OverBudgetError, "needs 10 bytes"),
        ({"nodes": tuple(replace(node, private_bytes=7) for node in PLACED.nodes)}, InputError, "cannot hold"),
        ({"nodes": tuple(replace(node, workspace_bytes=3) for node in PLACED.nodes)}, InputError, "largest workspace"),
        ({"nodes": tuple(replace(node, load_fraction=0.7) for node in PLACED.nodes)}, InputError, "sum of its queries"),
        ({"queries": tuple(replace(q, goodput_fraction=1.2) for q in PLACED.queries)}, InputError, "is no fraction"),
    ],
)  # fmt: skip
def test_a_placement_that_breaks_its_promises_is_refused(broken, error, told):
    with pytest.raises(error, match=told):
        replace(PLACED, **broken).verify()


def test_no_queries_need_no_node_in_particular():
    found = place({}, {}, [NodeCapacity("n0", 1)], profile({}))
    assert found.queries == ()
    assert found.worst_goodput_fraction == 1.0
    assert Placement((), ()).spared_bytes == 0

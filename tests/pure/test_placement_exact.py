"""How far placements of small fleets are from the best there is, by a mixed integer linear program."""

import random
import statistics

import pytest
from placement_cases import Case, generated, profile

from gemel_ray.policy.planning import ServedQuery
from gemel_ray.spec.placement import NodeCapacity

pytest.importorskip("scipy.optimize", reason="the exact solver (HiGHS) comes with scipy: pip install scipy")

from placement_milp import TOLERANCE, best_placement


def measured(placement):
    """The highest pressure, at least 1, and bytes held."""
    worst = max(1.0, *(node.pressure for node in placement.nodes))
    return worst, sum(node.weights_bytes for node in placement.nodes)


def test_the_program_finds_what_is_seen_at_a_glance():
    # Two families of two; apart they fit, mixed they need a copy more.
    queries = {name: ServedQuery((name[0],), 10.0, 1000.0) for name in ("a1", "b1", "a2", "b2")}
    nodes = [NodeCapacity("n0", 40), NodeCapacity("n1", 40)]
    device = profile(dict.fromkeys(queries, (51.0, 0)))
    case = Case(queries, {"a": 30, "b": 20}, nodes, dict.fromkeys(("n0", "n1"), device))
    assert best_placement(*case.arguments) == (pytest.approx(1.2), 50)
    assert measured(case.placed()) == (pytest.approx(1.2), 50)


def test_small_fleets_are_placed_nearly_as_well_as_can_be():
    rng = random.Random(7)
    goodput_gaps, bytes_gaps = [], []
    for _ in range(25):
        case = generated(
            rng, 8, 3, load=rng.choice((0.5, 0.7, 0.9, 1.0, 1.2)), memory=rng.choice((0.4, 0.6, 0.8, 1.0, 1.3)),
            families=rng.randint(1, 4),
        )  # fmt: skip
        (worst, held), (least, fewest) = measured(case.placed()), best_placement(*case.arguments)
        assert worst >= least - 10 * TOLERANCE, "better than the best: the program does not describe the problem"
        goodput_gaps.append(1 - least / worst)
        if goodput_gaps[-1] < 1e-4:
            bytes_gaps.append(held / fewest - 1)
    assert statistics.fmean(goodput_gaps) < 0.005
    assert max(goodput_gaps) < 0.05
    assert statistics.fmean(bytes_gaps) < 0.01
    assert max(bytes_gaps) < 0.08

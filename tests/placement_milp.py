"""The best placement there is, as a mixed integer linear program for HiGHS (Huangfu and Hall, 2018), by scipy."""

from collections import defaultdict

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from gemel_ray.policy.fleet import fleet_of
from gemel_ray.spec.units import MIB

# Feasibility of constraints and integers, HiGHS's default; pressures closer than this are equal.
TOLERANCE = 1e-6


class _Program:
    """Variables by name, rows of coefficients."""

    def __init__(self):
        self.variables, self.whole, self.rows, self.least = {}, [], [], []

    def variable(self, *name, whole=False):
        if name not in self.variables:
            self.variables[name] = len(self.variables)
            self.whole.append(whole)
        return self.variables[name]

    def row(self, coefficients, least):
        """Sum of coefficient times variable >= least."""
        self.rows.append(coefficients)
        self.least.append(least)

    def minimise(self, coefficients, seconds=60):
        matrix = np.zeros((len(self.rows), len(self.variables)))
        for number, row in enumerate(self.rows):
            for place, value in row.items():
                matrix[number, place] += value
        costs = np.zeros(len(self.variables))
        for place, value in coefficients.items():
            costs[place] = value
        upper = np.where(np.array(self.whole), 1.0, np.inf)
        found = milp(
            costs,
            constraints=LinearConstraint(matrix, lb=np.array(self.least)),
            integrality=np.array(self.whole, dtype=int),
            bounds=Bounds(0.0, upper),
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )
        assert found.success, found.message
        return found.fun


def best_placement(queries, weight_bytes, nodes, profiles, *, seconds=60):
    """The lowest highest pressure (at least 1) of any placement, and then the fewest bytes held.

    The worst query's expected goodput is 1 by the former; see policy.fleet. AssertionError where HiGHS does not finish.
    """
    fleet = fleet_of(queries, weight_bytes, nodes, profiles)
    program = _Program()
    worst = program.variable("pressure")
    program.row({worst: 1.0}, 1.0)
    for query, allowed in enumerate(fleet.allowed):
        taken = {program.variable("on", query, node, whole=True): 1.0 for node in allowed}
        program.row(taken, 1.0)
        program.row({place: -1.0 for place in taken}, -1.0)
    held = defaultdict(dict)
    for node in range(len(fleet.nodes)):
        _node(program, fleet, node, worst, held[node])
    pressure = program.minimise({worst: 1.0}, seconds)
    program.row({worst: -1.0}, -(pressure + TOLERANCE))
    every = {place: size for pieces in held.values() for place, size in pieces.items()}
    return pressure, round(program.minimise(every, seconds) * MIB)


def _node(program, fleet, node, worst, held):
    """Weights held once, the largest workspace, what exceeds the memory, and the pressure that each query sees."""
    here = [query for query, allowed in enumerate(fleet.allowed) if node in allowed]
    on = {query: program.variable("on", query, node, whole=True) for query in here}
    space, over = program.variable("space", node), program.variable("over", node)
    for query in here:
        program.row({space: 1.0, on[query]: -fleet.costs[node][query].workspace_bytes / MIB}, 0.0)
        for piece in fleet.pieces[query]:
            copy = program.variable("held", piece, node)
            held[copy] = fleet.piece_bytes[piece] / MIB
            program.row({copy: 1.0, on[query]: -1.0}, 0.0)
    # Over >= weights + workspace - memory.
    program.row({over: 1.0, space: -1.0} | {c: -b for c, b in held.items()}, -fleet.nodes[node].memory_bytes / MIB)
    load = {on[query]: fleet.costs[node][query].load for query in here}
    most_mib = sum(held.values()) + max((fleet.costs[node][query].workspace_bytes for query in here), default=0) / MIB
    for query in here:
        per_mib = MIB / fleet.swap_bytes_per_ms[node] / fleet.costs[node][query].patience_ms
        # Lifted for queries that are elsewhere.
        lifted = sum(load.values()) + per_mib * max(most_mib - fleet.nodes[node].memory_bytes / MIB, 0.0)
        row = {worst: 1.0, over: -per_mib} | {place: -value for place, value in load.items()}
        row[on[query]] = row.get(on[query], 0.0) - lifted
        program.row(row, -lifted)

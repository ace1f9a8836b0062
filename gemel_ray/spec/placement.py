"""Placement: which node runs which query, what every node then holds, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gemel_ray.spec.errors import InputError, OverBudgetError

# Loads are sums of floats, taken in another order by whoever checks them.
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """One node, and the bytes that weights and workspace may take there. Its compute is one device's whole time."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class PlacedQuery:
    """One query on its node; costs are those of the node's device, at batch size 1."""

    name: str
    node: str
    weights_bytes: int
    workspace_bytes: int
    # Share of the device's time that all of its frames take.
    load_fraction: float
    # Expected; see policy.fleet.
    goodput_fraction: float
    reason: str


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """What a node is to hold. Weights are counted once per node; shared ones are used by two or more of its queries."""

    name: str
    memory_bytes: int
    queries: tuple[str, ...]
    shared_bytes: int
    private_bytes: int
    # The largest of its queries', since one of them computes at a time.
    workspace_bytes: int
    # Share of the device's time that computing every frame takes.
    load_fraction: float
    # What computing and swapping ask for, by what can be done in time; above 1, frames are lost. See policy.fleet.
    pressure: float

    @property
    def weights_bytes(self) -> int:
        """All weights of the node, each once."""
        return self.shared_bytes + self.private_bytes

    @property
    def free_bytes(self) -> int:
        """Memory beside all weights and the largest workspace; 0 where they do not fit together."""
        return max(self.memory_bytes - self.weights_bytes - self.workspace_bytes, 0)

    @property
    def over_bytes(self) -> int:
        """What does not fit, so that weights are swapped; 0 where all are resident."""
        return max(self.weights_bytes + self.workspace_bytes - self.memory_bytes, 0)

    @property
    def is_overloaded(self) -> bool:
        """Whether computing and swapping ask for more than the device can do in time."""
        return self.pressure > 1 + _TOLERANCE


@dataclass(frozen=True, slots=True)
class Placement:
    """Queries on nodes, in the order both were given."""

    nodes: tuple[PlacedNode, ...]
    queries: tuple[PlacedQuery, ...]
    # Queries that ran on another node before, in order; one that ran nowhere has not moved.
    moved: tuple[str, ...] = ()

    @property
    def node_of(self) -> Mapping[str, str]:
        """Query to node."""
        return {query.name: query.node for query in self.queries}

    @property
    def spared_bytes(self) -> int:
        """Bytes that queries on one node spare by sharing, against every query's own copy."""
        own_bytes = sum(query.weights_bytes for query in self.queries)
        return own_bytes - sum(node.weights_bytes for node in self.nodes)

    @property
    def worst_goodput_fraction(self) -> float:
        """Of the query that is expected to fare worst; 1 for no queries."""
        return min((query.goodput_fraction for query in self.queries), default=1.0)

    def verify(self) -> None:
        """Check what every placement promises; to be called before it is acted on.

        Every query is on exactly one node that is there and that lists it, fits that node by itself, and is expected
        to have between none and all of its frames answered; a node holds at least its largest query and at most all
        of them apart, beside the largest workspace, and its load is the sum of theirs. Raises OverBudgetError for a
        query that does not fit its node, InputError for anything else.
        """
        _check_names(self)
        for node in self.nodes:
            _check_node(node, [query for query in self.queries if query.node == node.name])


def _check_names(placement: Placement) -> None:
    nodes = [node.name for node in placement.nodes]
    placed = [query.name for query in placement.queries]
    for what, names in (("node", nodes), ("query", placed)):
        if again := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"placement: {what} {again[0]!r} appears more than once; place it once")
    if lost := [query for query in placement.queries if query.node not in nodes]:
        raise InputError(f"placement: query {lost[0].name!r} is on {lost[0].node!r}, which is none of the nodes")
    if odd := sorted(set(placement.moved) - set(placed)):
        raise InputError(f"placement: {odd[0]!r} is said to have moved, but is placed nowhere")


def _check_node(node: PlacedNode, queries: list[PlacedQuery]) -> None:
    if list(node.queries) != [query.name for query in queries]:
        raise InputError(f"placement: node {node.name!r} lists {list(node.queries)}; its queries say otherwise")
    for query in queries:
        if query.weights_bytes + query.workspace_bytes > node.memory_bytes:
            raise OverBudgetError(
                f"placement: query {query.name!r} needs {query.weights_bytes + query.workspace_bytes} bytes, "
                f"node {node.name!r} offers {node.memory_bytes}; place it on a larger node"
            )
        if not 0 <= query.goodput_fraction <= 1:
            raise InputError(f"placement: query {query.name!r}: {query.goodput_fraction} is no fraction of its frames")
    own_bytes = [query.weights_bytes for query in queries]
    if not max(own_bytes, default=0) <= node.weights_bytes <= sum(own_bytes):
        raise InputError(
            f"placement: node {node.name!r} cannot hold its queries' weights in {node.weights_bytes} bytes"
        )
    if node.workspace_bytes != max((query.workspace_bytes for query in queries), default=0):
        raise InputError(f"placement: node {node.name!r}: {node.workspace_bytes} is not its largest workspace")
    if not math.isclose(node.load_fraction, sum(query.load_fraction for query in queries), abs_tol=_TOLERANCE):
        raise InputError(f"placement: node {node.name!r}: {node.load_fraction} is not the sum of its queries' loads")

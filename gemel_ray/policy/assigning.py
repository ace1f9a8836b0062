"""Homes for a release's queries on the nodes that are there: as placed, or none, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gemel_ray.policy.placement import place
from gemel_ray.policy.planning import ServedQuery
from gemel_ray.policy.sharing import Holding
from gemel_ray.spec.placement import NodeCapacity
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.units import format_bytes


@dataclass(frozen=True, slots=True)
class Homes:
    """Query to node; and those that fit nowhere, with what they lack."""

    node_of: Mapping[str, str]
    unplaced: Mapping[str, str]


def find_homes(
    holding: Holding,
    memory_bytes: Mapping[str, int],
    profiles: Mapping[str, DeviceProfile],
    current: Mapping[str, str],
) -> Homes:
    """Place every query that fits any node; `current` homes are left only for others that are better or gone.

    Both mappings are by node. Raises ServingError for a profile without a query.
    """
    lacking = {name: _lacks(query, name, holding, memory_bytes, profiles) for name, query in holding.queries.items()}
    unplaced = {name: reason for name, reason in lacking.items() if reason is not None}
    fitting = {name: query for name, query in holding.queries.items() if name not in unplaced}
    if not fitting:
        return Homes({}, unplaced)
    nodes = [NodeCapacity(name, found) for name, found in memory_bytes.items()]
    placed = place(fitting, holding.weight_bytes, nodes, profiles, current=current)
    return Homes(dict(placed.node_of), unplaced)


def _lacks(
    query: ServedQuery,
    name: str,
    holding: Holding,
    memory_bytes: Mapping[str, int],
    profiles: Mapping[str, DeviceProfile],
) -> str | None:
    """What a query lacks on the node where it lacks least; None where it fits one."""
    if not memory_bytes:
        return "no node answers"
    weights_bytes = sum(holding.weight_bytes[weight] for weight in dict.fromkeys(query.weights))
    short = {
        node: weights_bytes + _workspace_bytes(profiles[node], name) - offered for node, offered in memory_bytes.items()
    }
    node = min(short, key=lambda found: short[found])
    if short[node] <= 0:
        return None
    return f"it fits no node that answers; {node} lacks {format_bytes(short[node])}"


def _workspace_bytes(profile: DeviceProfile, query: str) -> int:
    found = profile.queries.get(query)
    return found.workspace_bytes[found.batch_sizes[0]] if found else 0

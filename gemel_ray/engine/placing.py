"""A release's queries on a workload's nodes: the plan and its reasons, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gemel_ray.engine.simulating import read_profile
from gemel_ray.policy.placement import deal_in_turn, place
from gemel_ray.policy.sharing import by_blob, models_of
from gemel_ray.spec.errors import InputError, nearest
from gemel_ray.spec.placement import NodeCapacity, PlacedNode, Placement
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Node, Workload
from gemel_ray.weights.store import open_store


@dataclass(frozen=True, slots=True)
class PlacingOptions:
    """What to place, and where the costs come from.

    `profiles` (files) and `rates` (devices' names) hold for all nodes, or, written NODE=..., for one of them.
    """

    release: int | None = None
    profiles: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    # The --json document of an earlier placement: what runs where now.
    current: Path | None = None
    seed: int = 0
    allow_factories: bool = False


def place_store(workload: Workload, uri: str, options: PlacingOptions) -> dict[str, Any]:
    """The placement of a release as a document, beside the same queries dealt in turn.

    The release says which queries there are, and at which frame rates and SLOs; the workload, which nodes. Raises
    InputError for wrong options, no nodes and queries that the release lacks, StoreError for a store without that
    release, OverBudgetError for queries that fit no node, ServingError for a profile without a query.
    """
    manifest = open_store(uri).manifest(options.release)
    _check(workload, manifest)
    holding = by_blob(models_of(manifest))
    nodes = [NodeCapacity(node.name, node.memory) for node in workload.nodes]
    profiles = _profiles(manifest, workload.nodes, options)
    arguments = (holding.queries, holding.weight_bytes, nodes, profiles)
    current = _current(options.current) if options.current is not None else None
    placement = place(*arguments, current=current, seed=options.seed)
    return _document(manifest, placement, deal_in_turn(*arguments), profiles)


def _check(workload: Workload, manifest: Manifest) -> None:
    if not workload.nodes:
        raise InputError(f"workload {workload.name!r} has no 'nodes'; add them, each with its name and memory")
    for query in workload.queries:
        if query.name not in manifest.queries:
            raise InputError(
                f"release {manifest.release} holds no query {query.name!r} ({nearest(query.name, manifest.queries)}); "
                "search this workload, or name the release of it"
            )


def _profiles(manifest: Manifest, nodes: Sequence[Node], options: PlacingOptions) -> dict[str, DeviceProfile]:
    """By node name; nodes with the same file or rates get the very same profile."""
    files, rates = _by_node("--profile", options.profiles, nodes), _by_node("--rates", options.rates, nodes)

    @cache
    def read(file: str | None, name: str | None) -> DeviceProfile:
        measured = Path(file) if file is not None else None
        return read_profile(manifest, measured, name, allow_factories=options.allow_factories)

    return {node.name: read(*_chosen(node.name, files, rates)) for node in nodes}


def _chosen(node: str, files: Mapping[str, str], rates: Mapping[str, str]) -> tuple[str | None, str | None]:
    """What is said of the node itself comes before what is said of all."""
    if node in files or node in rates:
        return files.get(node), rates.get(node)
    return files.get(""), rates.get("")


def _by_node(option: str, given: Sequence[str], nodes: Sequence[Node]) -> dict[str, str]:
    """What an option says of each node, and under '' of all others."""
    names = {node.name for node in nodes}
    found: dict[str, str] = {}
    for each in given:
        node, equals, value = each.rpartition("=")
        if equals and node not in names:
            raise InputError(f"{option} {each}: there is no node {node!r} in the workload; {nearest(node, names)}")
        if node in found:
            raise InputError(f"{option} says two things of {node or 'all nodes'}: {found[node]} and {value}; say one")
        found[node] = value
    return found


def _current(path: Path) -> dict[str, str]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {str(row["query"]): str(row["node"]) for row in document["queries"]}
    except OSError as error:
        raise InputError(f"--current {path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--current {path}: is no placement; keep what `gemel place ... --json` prints") from error


def _document(
    manifest: Manifest, placement: Placement, dealt: Placement, profiles: Mapping[str, DeviceProfile]
) -> dict[str, Any]:
    return {
        "release": manifest.release,
        "workload": manifest.workload_name,
        "worst_goodput_fraction": placement.worst_goodput_fraction,
        "spared_bytes": placement.spared_bytes,
        "moved": list(placement.moved),
        "dealt_in_turn": {
            "worst_goodput_fraction": dealt.worst_goodput_fraction,
            "spared_bytes": dealt.spared_bytes,
            "elsewhere": [name for name, node in dealt.node_of.items() if placement.node_of[name] != node],
        },
        "nodes": [_node_row(node, profiles[node.name]) for node in placement.nodes],
        "queries": [{"query": each.pop("name")} | each for each in map(asdict, placement.queries)],
    }


def _node_row(node: PlacedNode, profile: DeviceProfile) -> dict[str, Any]:
    row = asdict(node)
    derived = {"free_bytes": node.free_bytes, "over_bytes": node.over_bytes, "overloaded": node.is_overloaded}
    return {"node": row.pop("name"), "device": profile.device, "estimated": profile.estimated} | row | derived

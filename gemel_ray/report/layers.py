"""The layers of a release's models, and what sharing them could save at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemel_ray.policy.grouping import group_layers, group_slices_in_sets
from gemel_ray.policy.search_state import SearchState
from gemel_ray.spec.errors import ModelError
from gemel_ray.spec.layers import Layer, ModelInventory, Tensor
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.weight_sets import is_remainder
from gemel_ray.vision.inspection import inspect_spec


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most bytes that any merge could save: across models (GEMEL's), and with repeats within models and slices."""

    across_bytes: int
    widest_bytes: int


def inventories_of(manifest: Manifest, *, allow_factories: bool = False) -> tuple[list[ModelInventory], list[str]]:
    """One inventory for each query, and the names of queries whose models could not be built here.

    Of those only shared layers are known, as the release itself tells them, and everything else as one piece.
    """
    found, unknown = [], []
    for name, released in manifest.queries.items():
        try:
            found.append(inspect_spec(name, released.query.model, allow_factories=allow_factories))
        except ModelError:
            found.append(told_by_release(manifest, name))
            unknown.append(name)
    return found, unknown


def told_by_release(manifest: Manifest, query: str) -> ModelInventory:
    """What a release tells of one model without building it: its shared layers in order of path, and the rest."""
    members = {
        member.layer: (layer.signature, layer.bytes_of(member))
        for layer in manifest.merge_configuration.shared
        for member in layer.members
        if member.query == query
    }
    released = manifest.queries[query]
    own_bytes = sum(manifest.blobs[blob].tensor_bytes for key, blob in released.weights.items() if is_remainder(key))
    layers = tuple(
        Layer(path, "", signature, signature, (Tensor("weight", (), layer_bytes),))
        for path, (signature, layer_bytes) in sorted(members.items())
    )
    return ModelInventory(query, released.query.model.builder, layers, own_bytes)


def bounds_of(inventories: Sequence[ModelInventory]) -> Bounds:
    """Both bounds from whole inventories."""
    across, widest = group_layers(inventories), group_slices_in_sets(inventories)
    return Bounds(sum(group.saved_bytes for group in across), sum(group.saved_bytes for group in widest))


def searched_bounds(states: Sequence[SearchState]) -> Bounds:
    """Both bounds as a search saw them; the second is the first where it was kept to sharing across models."""
    across, within, sliced = (
        sum(layer.saved_bytes for state in states for layer in getattr(state, sort))
        for sort in ("groups", "beyond", "widest")
    )
    return Bounds(across, max(across, within, sliced))

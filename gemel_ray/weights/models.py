"""Models in and out of blobs: one for each shared layer, and the pieces of each query's private remainder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch

from gemel_ray.spec.errors import StoreError, nearest
from gemel_ray.spec.layers import LayerRef, covers
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import BlobInfo
from gemel_ray.spec.weight_sets import REMAINDER, private_sets, tensor_prefix
from gemel_ray.weights.store import Store
from gemel_ray.weights.tensors import Tensors, decode, narrowed, put_tensors, tensor_bytes

ReadTensors = Callable[[str], Tensors]
# See ReleasedQuery.slices.
Slices = Mapping[str, Mapping[str, tuple[int, ...]]]


def store_models(
    store: Store,
    states: Mapping[str, Tensors],
    configuration: MergeConfiguration,
    layer_tensors: Mapping[LayerRef, tuple[str, ...]],
) -> tuple[dict[str, dict[str, str]], dict[str, BlobInfo]]:
    """Write full state dicts (by query) as blobs; give back where each query's weights are, and what they weigh.

    `layer_tensors` names the tensors of each shared layer below its path. What is unchanged from an earlier release
    is found in the store by content and written once. Raises StoreError when layers that are said to share do not
    hold equal weights, or when a state dict lacks a tensor of a shared layer; blobs written by then stay unused.
    """
    weights: dict[str, dict[str, str]] = {query: {} for query in states}
    blobs: dict[str, BlobInfo] = {}
    taken: dict[str, set[str]] = {query: set() for query in states}
    for shared in configuration.shared:
        layers = {member: _layer(states, member, layer_tensors) for member in shared.members}
        whole = max(shared.members, key=lambda member: tensor_bytes(layers[member]))
        _check_equal(layers, whole)
        sha, info = put_tensors(store, layers[whole])
        blobs[sha] = info
        for member in shared.members:
            weights[member.query][member.layer] = sha
            taken[member.query] |= {f"{member.layer}.{name}" for name in layers[member]}
    for query, state in states.items():
        private = {name: tensor for name, tensor in state.items() if name not in taken[query]}
        for path, tensors in _pieces(private).items():
            sha, info = put_tensors(store, tensors)
            blobs[sha] = info
            weights[query][path] = sha
    return weights, blobs


def _pieces(private: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """A query's private tensors by the weight sets they go to, under their full names."""
    layer_of = {name: name.rpartition(".")[0] for name in private}
    layer_bytes: Counter[str] = Counter()
    for name, tensor in private.items():
        layer_bytes[layer_of[name]] += tensor_bytes({name: tensor})
    key_of = private_sets(layer_bytes)
    pieces: dict[str, dict[str, torch.Tensor]] = {REMAINDER: {}}
    for name, tensor in private.items():
        pieces.setdefault(key_of[layer_of[name]], {})[name] = tensor
    return pieces


def _layer(
    states: Mapping[str, Tensors], ref: LayerRef, names: Mapping[LayerRef, tuple[str, ...]]
) -> dict[str, torch.Tensor]:
    """The tensors of one shared layer, by their short names."""
    if ref.query not in states or ref not in names:
        raise StoreError(f"{ref} is to be shared, but its state dict or its tensor names were not given")
    state = states[ref.query]
    for name in names[ref]:
        if f"{ref.layer}.{name}" not in state:
            close = nearest(f"{ref.layer}.{name}", state)
            raise StoreError(f"{ref} is to be shared, but its state dict has no {ref.layer}.{name}; {close}")
    return {name: state[f"{ref.layer}.{name}"] for name in names[ref]}


def _check_equal(layers: Mapping[LayerRef, Tensors], whole: LayerRef) -> None:
    """All members hold what the largest does, or its first rows, columns ..."""
    for member in layers:
        if not _equal(layers[whole], layers[member]):
            raise StoreError(
                f"{whole} and {member} are said to share weights but hold different ones; nothing was published. "
                "Store the models while their shared layers are bound together"
            )


def _equal(whole: Tensors, other: Tensors) -> bool:
    return whole.keys() == other.keys() and all(
        whole[name].dtype == other[name].dtype
        and covers(whole[name].shape, other[name].shape)
        and torch.equal(narrowed(whole[name], other[name].shape), other[name])
        for name in whole
    )


def load_state(read_tensors: ReadTensors, weights: Mapping[str, str], slices: Slices) -> dict[str, torch.Tensor]:
    """One query's full state dict, from what its ReleasedQuery says under these names.

    The same blob gives the same tensor objects when `read_tensors` caches; slices are views of them.
    """
    state: dict[str, torch.Tensor] = {}
    for path, sha in weights.items():
        prefix, shapes = tensor_prefix(path), slices.get(path, {})
        for name, tensor in read_tensors(sha).items():
            state[f"{prefix}{name}"] = narrowed(tensor, shapes.get(name, tensor.shape))
    return state


class BlobReader:
    """Reads a store's blobs as tensors, each blob once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Tensors] = {}

    def __call__(self, sha: str) -> Tensors:
        """The tensors of a blob; the same objects every time."""
        if sha not in self._held:
            self._held[sha] = decode(self._store.read_blob(sha))
        return self._held[sha]

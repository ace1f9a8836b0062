"""Models in and out of blobs: one blob for each shared layer, one for each query's private remainder."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from safetensors import torch as safetensors_torch

from gemel_ray.spec.errors import StoreError
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import REMAINDER, BlobInfo
from gemel_ray.weights.store import Store

Tensors = Mapping[str, torch.Tensor]
ReadTensors = Callable[[str], Tensors]


def put_tensors(store: Store, tensors: Tensors) -> tuple[str, BlobInfo]:
    """Store tensors as one blob; equal tensors give equal bytes."""
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    data = safetensors_torch.save(plain)
    return store.put_blob(data), BlobInfo(tensor_bytes=tensor_bytes(plain), file_bytes=len(data))


def tensor_bytes(tensors: Tensors) -> int:
    """Bytes the tensors take in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def store_models(
    store: Store,
    states: Mapping[str, Tensors],
    configuration: MergeConfiguration,
    layer_tensors: Mapping[LayerRef, tuple[str, ...]],
) -> tuple[dict[str, dict[str, str]], dict[str, BlobInfo]]:
    """Write full state dicts (by query) as blobs; give back where each query's weights are, and what they weigh.

    `layer_tensors` names the tensors of each shared layer below its path. Raises StoreError when layers that are
    said to share do not hold equal weights.
    """
    weights: dict[str, dict[str, str]] = {query: {} for query in states}
    blobs: dict[str, BlobInfo] = {}
    taken: dict[str, set[str]] = {query: set() for query in states}
    for shared in configuration.shared:
        first = shared.members[0]
        sha, info = put_tensors(store, _layer(states, first, layer_tensors))
        blobs[sha] = info
        for member in shared.members:
            _check_equal(states, first, member, layer_tensors)
            weights[member.query][member.layer] = sha
            taken[member.query] |= {f"{member.layer}.{name}" for name in layer_tensors[member]}
    for query, state in states.items():
        sha, info = put_tensors(store, {name: tensor for name, tensor in state.items() if name not in taken[query]})
        blobs[sha] = info
        weights[query][REMAINDER] = sha
    return weights, blobs


def _layer(
    states: Mapping[str, Tensors], ref: LayerRef, names: Mapping[LayerRef, tuple[str, ...]]
) -> dict[str, torch.Tensor]:
    return {name: states[ref.query][f"{ref.layer}.{name}"] for name in names[ref]}


def _check_equal(
    states: Mapping[str, Tensors], first: LayerRef, member: LayerRef, names: Mapping[LayerRef, tuple[str, ...]]
) -> None:
    one, other = _layer(states, first, names), _layer(states, member, names)
    if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
        raise StoreError(
            f"{first} and {member} are said to share weights but hold different ones; nothing was published"
        )


def load_state(read_tensors: ReadTensors, weights: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """One query's full state dict. The same blob gives the same tensor objects when `read_tensors` caches."""
    state: dict[str, torch.Tensor] = {}
    for path, sha in weights.items():
        prefix = "" if path == REMAINDER else f"{path}."
        state |= {f"{prefix}{name}": tensor for name, tensor in read_tensors(sha).items()}
    return state


class BlobReader:
    """Reads a store's blobs as tensors, each blob once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Tensors] = {}

    def __call__(self, sha: str) -> Tensors:
        """The tensors of a blob; the same objects every time."""
        if sha not in self._held:
            self._held[sha] = safetensors_torch.load(self._store.read_blob(sha))
        return self._held[sha]

"""Models in and out of blobs: pieces of what the same queries share, and of each query's private remainder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

import torch

from gemel_ray.spec.errors import StoreError, nearest
from gemel_ray.spec.layers import LayerRef, covers
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.release import BlobInfo, ReleasedQuery
from gemel_ray.spec.weight_sets import REMAINDER, common_sets, private_sets, tensor_prefix
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
    copies = {shared: _one_copy(states, shared, layer_tensors) for shared in configuration.shared}
    shared_names: dict[str, set[str]] = {query: set() for query in states}
    for shared, copy in copies.items():
        for member in shared.members:
            shared_names[member.query] |= {f"{member.layer}.{name}" for name in copy}
    weights: dict[str, dict[str, str]] = {query: {} for query in states}
    blobs: dict[str, BlobInfo] = {}
    for places, tensors in (*_shared_sets(copies, states), *_private_sets(states, shared_names)):
        sha, info = put_tensors(store, tensors)
        blobs[sha] = info
        for place in places:
            weights[place.query][place.layer] = sha
    return weights, blobs


def _shared_sets(
    copies: Mapping[SharedLayer, Tensors], states: Mapping[str, Tensors]
) -> Iterator[tuple[Sequence[LayerRef], Tensors]]:
    """Where each weight set of shared layers goes, as query and key, and its tensors."""
    together: dict[tuple[str, ...], dict[str, Tensors]] = defaultdict(dict)
    for shared, copy in copies.items():
        if users := _common_users(shared):
            together[users][shared.members[0].layer] = copy
        else:
            yield shared.members, copy
    for users, layers in together.items():
        ordered = _as_they_appear(layers, states[users[0]])
        key_of = common_sets({path: tensor_bytes(layers[path]) for path in ordered})
        for key in dict.fromkeys(key_of.values()):
            tensors = {
                f"{path}.{name}".removeprefix(tensor_prefix(key)): tensor
                for path in ordered if key_of[path] == key
                for name, tensor in layers[path].items()
            }  # fmt: skip
            yield [LayerRef(user, key) for user in users], tensors


def _common_users(shared: SharedLayer) -> tuple[str, ...]:
    """Its queries, where it is one layer of each, at one path, and of one size; else none."""
    users = tuple(dict.fromkeys(member.query for member in shared.members))
    paths = {member.layer for member in shared.members}
    return users if len(users) == len(shared.members) and len(paths) == 1 and not shared.extents else ()


def _as_they_appear(layers: Mapping[str, Tensors], state: Iterable[str]) -> list[str]:
    depth = {name: depth for depth, name in enumerate(state)}
    return sorted(layers, key=lambda path: min(depth[f"{path}.{name}"] for name in layers[path]))


def _private_sets(
    states: Mapping[str, Tensors], shared_names: Mapping[str, set[str]]
) -> Iterator[tuple[Sequence[LayerRef], Tensors]]:
    for query, state in states.items():
        private = {name: tensor for name, tensor in state.items() if name not in shared_names[query]}
        for key, tensors in _pieces(private).items():
            yield [LayerRef(query, key)], tensors


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


def _one_copy(states: Mapping[str, Tensors], shared: SharedLayer, names: Mapping[LayerRef, tuple[str, ...]]) -> Tensors:
    """What all members hold: the largest's tensors, by their short names."""
    layers = {member: _layer(states, member, names) for member in shared.members}
    whole = max(shared.members, key=lambda member: tensor_bytes(layers[member]))
    _check_equal(layers, whole)
    return layers[whole]


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

    def __init__(self, store: Store, keeps: Container[str] | None = None) -> None:
        """Of `keeps`, if that is given, others are not held, and read again when they are asked for again."""
        self._store = store
        self._keeps = keeps
        self._held: dict[str, Tensors] = {}

    def __call__(self, sha: str) -> Tensors:
        """The tensors of a blob; the same objects every time, as long as they are held."""
        if sha in self._held:
            return self._held[sha]
        tensors = decode(self._store.read_blob(sha))
        if self._keeps is None or sha in self._keeps:
            self._held[sha] = tensors
        return tensors


def reader_of(store: Store, models: Iterable[ReleasedQuery]) -> BlobReader:
    """Reads the weights of these models one after the other; holds only what is needed again."""
    uses = Counter(sha for model in models for sha in model.weights.values())
    return BlobReader(store, keeps={sha for sha, count in uses.items() if count > 1})

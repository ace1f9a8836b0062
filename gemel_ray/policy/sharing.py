"""Forms of sharing: which weight sets a node holds for the same models, from none shared to all that a merge shares."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gemel_ray.policy.planning import ServedQuery
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.weight_sets import PIECE_BYTES, common_sets, pieces, private_sets


@dataclass(frozen=True, slots=True)
class ModelLayer:
    """A layer, or any part of a model that is loaded by itself.

    Layers of equal `merged` share one copy after the merge; those of equal `original` were bit-identical before it.
    """

    bytes: int
    merged: str
    original: str
    # Of the merged copy, where this layer is but a slice of it.
    copy_bytes: int | None = None
    # Its path in its model: a release stores layers together that the same models share at the same paths. None where
    # it is a weight set by itself.
    path: str | None = None

    def bytes_as(self, copy: str) -> int:
        """What that copy of the layer weighs."""
        return self.copy_bytes if self.copy_bytes is not None and copy == self.merged else self.bytes


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One query's model, its layers in order of appearance, and what is asked of it."""

    layers: tuple[ModelLayer, ...]
    fps: float
    slo_ms: float


Models = Mapping[str, ServedModel]


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node is to hold: queries in the given order, and the bytes of each weight set they name."""

    queries: Mapping[str, ServedQuery]
    weight_bytes: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of all weight sets, each once."""
        return sum(self.weight_bytes.values())


Sharing = Callable[[Models], Holding]


def models_of(manifest: Manifest) -> dict[str, ServedModel]:
    """A release's models. It knows no order of layers and no originals: blobs come in order of module path, and only
    what is merged counts as bit-identical nowhere."""
    return {
        name: ServedModel(tuple(_layers_of(manifest, name)), released.query.fps, released.query.slo_ms)
        for name, released in manifest.queries.items()
    }


def _layers_of(manifest: Manifest, query: str) -> Iterator[ModelLayer]:
    slices_bytes = {
        extent.member.layer: extent.bytes
        for layer in manifest.merge_configuration.shared
        for extent in layer.extents
        if extent.member.query == query
    }
    for path, blob in sorted(manifest.queries[query].weights.items()):
        copy_bytes = manifest.blobs[blob].tensor_bytes
        own_bytes = slices_bytes.get(path, copy_bytes)
        yield ModelLayer(own_bytes, merged=blob, original=f"{query}/{path}", copy_bytes=copy_bytes)


def whole_models(models: Models) -> Holding:
    """Nothing shared, and every model one weight set that comes and goes as a whole."""
    queries = {name: ServedQuery((name,), model.fps, model.slo_ms) for name, model in models.items()}
    return Holding(queries, {name: sum(layer.bytes for layer in model.layers) for name, model in models.items()})


def private_layers(models: Models) -> Holding:
    """Nothing shared, loaded and evicted in pieces."""
    copies = {name: [f"{name}/{depth}" for depth in range(len(model.layers))] for name, model in models.items()}
    return in_pieces(models, copies, PIECE_BYTES)


def bit_identical_layers(models: Models) -> Holding:
    """Only layers that were bit-identical before any merge share a copy: what deduplication finds by itself."""
    copies = {name: [layer.original for layer in model.layers] for name, model in models.items()}
    return in_pieces(models, copies, PIECE_BYTES)


def merged_layers(models: Models) -> Holding:
    """All that the merge shares, loaded and evicted in pieces."""
    return in_pieces(models, _merged(models), PIECE_BYTES)


def as_released(models: Models) -> Holding:
    """All that the merge shares, in the weight sets of a release: pieces of what the same queries share at the same
    paths, and of each private rest; every other shared layer by itself."""
    merged = _merged(models)
    set_of = {copy: copy for copies in merged.values() for copy in copies}
    for users, copy_bytes in _common_layers(models).items():
        key_of = private_sets(copy_bytes) if len(users) == 1 else common_sets(copy_bytes)
        set_of |= {copy: f"{'+'.join(users)}/{key}" for copy, key in key_of.items()}
    return _holding(models, merged, set_of)


def _common_layers(models: Models) -> dict[tuple[str, ...], dict[str, int]]:
    """By users: bytes of the copies that each of them uses once, and at the same path if there are several."""
    places: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for name, model in models.items():
        for layer in model.layers:
            places[layer.merged].append((name, layer.path))
    common: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for copy, count_bytes in _copy_bytes(models, _merged(models)).items():
        users, paths = zip(*places[copy], strict=True)
        if len(users) == 1 or (len({*users}) == len(users) and len({*paths}) == 1 and paths[0] is not None):
            common[users][copy] = count_bytes
    return common


def by_blob(models: Models) -> Holding:
    """The blobs of a release under their own names, one weight set each: what an engine loads."""
    queries = {
        name: ServedQuery(tuple(dict.fromkeys(layer.merged for layer in model.layers)), model.fps, model.slo_ms)
        for name, model in models.items()
    }
    copies = {layer.merged: layer.bytes_as(layer.merged) for model in models.values() for layer in model.layers}
    return Holding(queries, copies)


def common_stems(models: Models) -> Holding:
    """Of what the merge shares, only a common prefix of layers from the input on, as in Mainstream (ATC'18).

    Memory only: where two queries ask about the same feed, Mainstream also computes the prefix once.
    """
    merged = _merged(models)
    users = Counter(tuple(copies[: depth + 1]) for copies in merged.values() for depth in range(len(copies)))
    return in_pieces(models, {name: _stem(name, copies, users) for name, copies in merged.items()}, PIECE_BYTES)


def _merged(models: Models) -> dict[str, list[str]]:
    return {name: [layer.merged for layer in model.layers] for name, model in models.items()}


def _stem(name: str, copies: Sequence[str], users: Mapping[tuple[str, ...], int]) -> list[str]:
    shared = sum(users[tuple(copies[: depth + 1])] > 1 for depth in range(len(copies)))
    return [*copies[:shared], *(f"{name}/{depth}" for depth in range(shared, len(copies)))]


def in_pieces(models: Models, copies: Mapping[str, Sequence[str]], piece_bytes: int) -> Holding:
    """Put copies that the same queries use together, in order of appearance, until a piece has enough bytes.

    `copies` names, for every query, the copy that each of its layers uses.
    """
    return _holding(models, copies, _pieces(copies, _copy_bytes(models, copies), piece_bytes))


def _holding(models: Models, copies: Mapping[str, Sequence[str]], set_of: Mapping[str, str]) -> Holding:
    """Every copy in the weight set it is said to be in."""
    weight_bytes: Counter[str] = Counter()
    for copy, count_bytes in _copy_bytes(models, copies).items():
        weight_bytes[set_of[copy]] += count_bytes
    queries = {
        name: ServedQuery(tuple(dict.fromkeys(set_of[copy] for copy in copies[name])), model.fps, model.slo_ms)
        for name, model in models.items()
    }
    return Holding(queries, dict(weight_bytes))


def _copy_bytes(models: Models, copies: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Of each copy, in order of appearance."""
    return {
        copy: layer.bytes_as(copy)
        for name, model in models.items()
        for copy, layer in zip(copies[name], model.layers, strict=True)
    }


def _pieces(copies: Mapping[str, Sequence[str]], copy_bytes: Mapping[str, int], piece_bytes: int) -> dict[str, str]:
    """The piece of each copy, named after its first user, how many others there are, and a number."""
    users: dict[str, dict[str, None]] = defaultdict(dict)
    for name, used in copies.items():
        for copy in used:
            users[copy][name] = None
    together: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for copy, count_bytes in copy_bytes.items():
        together[tuple(users[copy])][copy] = count_bytes
    piece_of: dict[str, str] = {}
    number = itertools.count()
    for using, own_bytes in together.items():
        for piece in pieces(own_bytes, piece_bytes):
            piece_of |= dict.fromkeys(piece, f"{using[0]}+{len(using) - 1}#{next(number)}")
    return piece_of

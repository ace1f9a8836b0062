"""What of a model is stored, sent, loaded and evicted by itself, and under which key a release says where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# The key of what a query shares with nobody, or of the first piece of it.
REMAINDER = ""
# Begins the key of a further piece of it, which goes on with the path of its first layer. No module path begins so.
_PIECE = "."
# The same for shared layers that the same queries have at the same paths: stored together, under their full names. By
# itself each costs a load: 111 for a merged densenet121 where 3 do.
_COMMON = ".."
# Layers that are loaded together have at least so many bytes, if there are so many. In one piece, large models come and
# go whole: simulated on two workloads of the study with little memory, goodput .667 instead of .997. In smaller ones
# the fixed cost of each load tells: six originals of 16 to 85 MB in 112 MiB of memory, reloaded from disk, reach .69 of
# frames in time with every layer from 4 MiB on by itself and .82 in pieces of 16 MiB (from memory .99 and .96); 60
# workloads of the study (jobs/bench_edge.py) .893 with pieces of 4 MiB and .898 of 16.
PIECE_BYTES = 16 << 20


def private_sets(layer_bytes: Mapping[str, int]) -> dict[str, str]:
    """Path -> key of the weight set it goes to, for a model's private layers in order of appearance."""
    sets: dict[str, str] = {}
    for number, piece in enumerate(pieces(layer_bytes, PIECE_BYTES)):
        sets |= dict.fromkeys(piece, f"{_PIECE}{piece[0]}" if number else REMAINDER)
    return sets


def common_sets(layer_bytes: Mapping[str, int]) -> dict[str, str]:
    """The same for layers, in order of appearance, that the same queries share at the same paths.

    One that is alone in its piece keeps its path as its key.
    """
    sets: dict[str, str] = {}
    for piece in pieces(layer_bytes, PIECE_BYTES):
        sets |= dict.fromkeys(piece, f"{_COMMON}{piece[0]}" if piece[1:] else piece[0])
    return sets


def pieces(item_bytes: Mapping[str, int], piece_bytes: int) -> Iterator[list[str]]:
    """What is loaded together: items in the given order, until a piece has enough bytes."""
    piece: list[str] = []
    filled_bytes = 0
    for item, count_bytes in item_bytes.items():
        piece.append(item)
        filled_bytes += count_bytes
        if filled_bytes >= piece_bytes:
            yield piece
            piece, filled_bytes = [], 0
    if piece:
        yield piece


def is_remainder(key: str) -> bool:
    """Whether a weight set is (a piece of) a query's private remainder."""
    return key == REMAINDER or (key.startswith(_PIECE) and not key.startswith(_COMMON))


def first_layer(key: str) -> str:
    """The path of the first layer of a weight set, which may be all of it; unknown of a remainder's first piece."""
    return key.lstrip(_PIECE)


def tensor_prefix(key: str) -> str:
    """What stands before the names that a weight set's blob gives its tensors, in the model's state dict."""
    return "" if key == REMAINDER or key.startswith(_PIECE) else f"{key}."

"""What of a model is stored, sent, loaded and evicted by itself, and under which key a release says where it is."""

from __future__ import annotations

from collections.abc import Mapping

# The key of what a query shares with nobody, or of the first piece of it.
REMAINDER = ""
# Begins the key of a further piece of it, which goes on with the path of its first layer. No module path begins so.
_PIECE = "."
# Layers that are loaded together have at least so many bytes, if there are so many. In one piece, large models come and
# go whole: simulated on two workloads of the study with little memory, goodput .667 instead of .997. In smaller ones
# the fixed cost of each load tells: six originals of 16 to 85 MB in 112 MiB of memory, reloaded from disk, reach .69 of
# frames in time with every layer from 4 MiB on by itself and .82 in pieces of 16 MiB (from memory .99 and .96); 60
# workloads of the study (jobs/bench_edge.py) .893 with pieces of 4 MiB and .898 of 16.
PIECE_BYTES = 16 << 20


def private_sets(layer_bytes: Mapping[str, int]) -> dict[str, str]:
    """Path -> key of the weight set it goes to, for a model's private layers in order of appearance."""
    sets: dict[str, str] = {}
    key, filled_bytes = REMAINDER, 0
    for path, count_bytes in layer_bytes.items():
        if filled_bytes >= PIECE_BYTES:
            key, filled_bytes = f"{_PIECE}{path}", 0
        sets[path] = key
        filled_bytes += count_bytes
    return sets


def is_remainder(key: str) -> bool:
    """Whether a weight set is (a piece of) a query's private remainder, not one layer."""
    return key == REMAINDER or key.startswith(_PIECE)


def tensor_prefix(key: str) -> str:
    """What stands before the names that a weight set's blob gives its tensors, in the model's state dict."""
    return "" if is_remainder(key) else f"{key}."

"""What of a model is stored, sent, loaded and evicted by itself, and under which key a release says where it is."""

from __future__ import annotations

from collections.abc import Mapping

# The key of what a query shares with nobody, or of the first piece of it.
REMAINDER = ""
# Begins the key of a further piece of it, which goes on with the path of its first layer. No module path begins so.
_PIECE = "."
# A private layer from this size on is a weight set of its own: it can stay on an edge box while the rest of its model
# goes, computing need not wait for all of a large model, and a release that leaves it alone does not send it again.
# Simulated on twenty workloads, such sets bring goodput at the tightest memory from .943 to .963 (jobs/bench_edge.py).
HEAVY_BYTES = 4 << 20
# All other private layers come in pieces of at least so many bytes, since each load has a fixed cost of its own. In
# one piece, models of many small layers (densenet201, efficientnet_b7) come and go whole: see jobs/bench_edge.py.
PIECE_BYTES = 16 << 20


def private_sets(layer_bytes: Mapping[str, int]) -> dict[str, str]:
    """Path -> key of the weight set it goes to, for a model's private layers in order of appearance."""
    sets: dict[str, str] = {}
    key, filled_bytes = REMAINDER, 0
    for path, count_bytes in layer_bytes.items():
        if path and count_bytes >= HEAVY_BYTES:
            sets[path] = path
            continue
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

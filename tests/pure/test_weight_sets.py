"""Which private layers are stored and loaded together."""

from collections import Counter
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.spec.weight_sets import (
    PIECE_BYTES,
    REMAINDER,
    is_remainder,
    private_sets,
    tensor_prefix,
)

PATHS = st.one_of(st.just(""), st.from_regex(r"[a-z0-9_]{1,4}(\.[a-z0-9_]{1,4}){0,2}", fullmatch=True))


@given(st.dictionaries(PATHS, st.integers(0, 6 << 20), max_size=40))
def test_private_layers_come_in_pieces_in_order(layer_bytes):
    key_of = private_sets(layer_bytes)
    assert list(key_of) == list(layer_bytes)
    assert all(is_remainder(key) for key in key_of.values())
    runs = [key for key, _ in groupby(key_of.values())]
    assert runs[:1] in ([], [REMAINDER])
    assert len(runs) == len(set(runs))
    filled: Counter[str] = Counter()
    for path, key in key_of.items():
        filled[key] += layer_bytes[path]
    assert all(filled[key] >= PIECE_BYTES for key in runs[:-1])


@given(st.dictionaries(PATHS, st.integers(0, 6 << 20), max_size=40))
def test_pieces_name_their_tensors_in_full_and_a_shared_layers_stand_below_its_path(layer_bytes):
    assert {tensor_prefix(key) for key in private_sets(layer_bytes).values()} <= {""}
    assert tensor_prefix("layer1.0.conv1") == "layer1.0.conv1."

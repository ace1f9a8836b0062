"""Which private layers are stored and loaded together."""

from collections import Counter
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.spec.weight_sets import (
    HEAVY_BYTES,
    PIECE_BYTES,
    REMAINDER,
    is_remainder,
    private_sets,
    tensor_prefix,
)

PATHS = st.one_of(st.just(""), st.from_regex(r"[a-z0-9_]{1,4}(\.[a-z0-9_]{1,4}){0,2}", fullmatch=True))


@given(st.dictionaries(PATHS, st.integers(0, 6 << 20), max_size=40))
def test_heavy_layers_stand_alone_and_all_others_in_pieces_in_order(layer_bytes):
    key_of = private_sets(layer_bytes)
    assert list(key_of) == list(layer_bytes)
    alone = {path for path, count_bytes in layer_bytes.items() if path and count_bytes >= HEAVY_BYTES}
    assert {path: key for path, key in key_of.items() if path in alone} == {path: path for path in alone}
    pieces = [key for path, key in key_of.items() if path not in alone]
    assert all(is_remainder(key) for key in pieces)
    runs = [key for key, _ in groupby(pieces)]
    assert runs[:1] in ([], [REMAINDER])
    assert len(runs) == len(set(runs))
    filled: Counter[str] = Counter()
    for path, key in key_of.items():
        filled[key] += layer_bytes[path]
    assert all(filled[key] >= PIECE_BYTES for key in runs[:-1])


@given(st.dictionaries(PATHS, st.integers(0, 6 << 20), max_size=40))
def test_a_layer_is_found_below_its_own_path_and_a_piece_names_its_tensors_in_full(layer_bytes):
    for path, key in private_sets(layer_bytes).items():
        assert tensor_prefix(key) == ("" if is_remainder(key) else f"{path}.")

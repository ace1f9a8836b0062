"""Which layers are stored and loaded together."""

from collections import Counter
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.spec.weight_sets import (
    PIECE_BYTES,
    REMAINDER,
    common_sets,
    is_remainder,
    pieces,
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


@given(st.dictionaries(PATHS, st.integers(0, 30), max_size=40), st.integers(1, 40))
def test_pieces_are_consecutive_and_no_larger_than_they_must_be(item_bytes, piece_bytes):
    made = list(pieces(item_bytes, piece_bytes))
    assert [item for piece in made for item in piece] == list(item_bytes)
    for piece in made:
        assert sum(item_bytes[item] for item in piece[:-1]) < piece_bytes
        assert piece is made[-1] or sum(item_bytes[item] for item in piece) >= piece_bytes


@given(st.dictionaries(PATHS.filter(bool), st.integers(0, 20 << 20), max_size=40))
def test_common_layers_come_in_pieces_that_no_private_one_is_taken_for(layer_bytes):
    key_of = common_sets(layer_bytes)
    assert list(key_of) == list(layer_bytes)
    assert not any(is_remainder(key) for key in key_of.values())
    for key in set(key_of.values()):
        together = [path for path in layer_bytes if key_of[path] == key]
        assert (key, tensor_prefix(key)) == (
            (f"..{together[0]}", "") if together[1:] else (together[0], f"{together[0]}.")
        )


@given(st.dictionaries(PATHS, st.integers(0, 6 << 20), max_size=40))
def test_pieces_name_their_tensors_in_full_and_a_shared_layers_stand_below_its_path(layer_bytes):
    assert {tensor_prefix(key) for key in private_sets(layer_bytes).values()} <= {""}
    assert tensor_prefix("layer1.0.conv1") == "layer1.0.conv1."

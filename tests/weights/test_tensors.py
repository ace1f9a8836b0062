"""Tensors and whole models in and out of blobs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weights_kit import a_manifest, a_query

from gemel_ray.spec.errors import CorruptBlobError, StoreError
from gemel_ray.spec.layers import Extent, LayerRef, Tensor
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.release import ReleasedQuery
from gemel_ray.weights.models import BlobReader, load_state, reader_of, store_models
from gemel_ray.weights.tensors import decode, encode, put_tensors, tensor_bytes

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randint(0, 2, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))


@given(st.dictionaries(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), tensors(), max_size=4))
def test_tensors_come_back_as_they_went_in(held):
    back = decode(encode(held))
    assert back.keys() == held.keys()
    assert all(back[name].dtype == held[name].dtype and torch.equal(back[name], held[name]) for name in held)


def test_equal_tensors_give_equal_bytes_whatever_their_order_or_layout():
    weight, bias = torch.randn(3, 4), torch.randn(3)
    turned = weight.t().contiguous().t()
    assert not turned.is_contiguous()
    parameter = torch.nn.Parameter(bias)
    assert encode({"weight": weight, "bias": bias}) == encode({"bias": parameter, "weight": turned})


def test_tensors_that_share_memory_are_written_out_each():
    base = torch.arange(6.0)
    back = decode(encode({"whole": base, "tied": base, "part": base[:2], "rows": base.view(2, 3)}))
    assert torch.equal(back["tied"], base)
    assert torch.equal(back["part"], base[:2])
    assert torch.equal(back["rows"], base.view(2, 3))
    assert len(encode({"part": base[:2]})) == len(encode({"part": base[:2].clone()}))


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.empty(2, device="meta"), "'weight' is on the meta device"),
        (torch.eye(2).to_sparse(), "'weight' is laid out as torch.sparse_coo"),
    ],
)
def test_tensors_without_plain_values_are_refused(tensor, told):
    with pytest.raises(StoreError, match=told):
        encode({"weight": tensor})


@pytest.mark.parametrize("data", [b"", b"junk", encode({"weight": torch.ones(3)})[:-1]])
def test_bytes_that_are_not_safetensors_are_refused(data):
    with pytest.raises(CorruptBlobError, match=f"{len(data)} bytes are not safetensors"):
        decode(data)


def test_a_blob_says_what_it_weighs(store):
    held = {"weight": torch.zeros(3, 4), "steps": torch.tensor(7)}
    sha, info = put_tensors(store, held)
    assert info.tensor_bytes == tensor_bytes(held) == 3 * 4 * 4 + 8
    assert info.file_bytes == len(store.read_blob(sha))


MEMBERS = (LayerRef("a", "fc"), LayerRef("b", "head.fc"))
NAMES = {member: ("weight", "bias") for member in MEMBERS}
SHARED = MergeConfiguration(shared=(SharedLayer(signature="s", layer_bytes=60, members=MEMBERS),))


@pytest.fixture
def states():
    weight, bias = torch.randn(3, 4), torch.randn(3)
    return {
        member.query: {
            f"{member.layer}.weight": weight.clone(),
            f"{member.layer}.bias": bias.clone(),
            "bn.running_mean": torch.randn(2),
            "bn.num_batches_tracked": torch.tensor(5),
        }
        for member in MEMBERS
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_models_come_back_whole_and_a_shared_layer_is_stored_once(store, states):
    weights, blobs = store_models(store, states, SHARED, NAMES)
    assert weights["a"]["fc"] == weights["b"]["head.fc"]
    assert sum(info.tensor_bytes for info in blobs.values()) == 60 + 2 * (8 + 8)
    assert decode(store.read_blob(weights["a"]["fc"])).keys() == {"weight", "bias"}
    read = BlobReader(store)
    assert all(same(load_state(read, weights[query], {}), states[query]) for query in states)


def test_what_is_described_is_what_a_manifest_needs(store, states):
    weights, blobs = store_models(store, states, SHARED, NAMES)
    used = {sha: blobs[sha] for sha in weights["a"].values()}
    assert store.publish(a_manifest(used, weights=weights["a"])).bytes_after == 60 + 16


def test_a_shared_layer_loads_as_one_tensor_across_queries(store, states):
    weights, _ = store_models(store, states, SHARED, NAMES)
    read = BlobReader(store)
    a, b = (load_state(read, weights[query], {}) for query in ("a", "b"))
    assert a["fc.weight"] is b["head.fc.weight"]
    assert a["fc.bias"].data_ptr() == b["head.fc.bias"].data_ptr()
    assert a["bn.running_mean"].data_ptr() != b["bn.running_mean"].data_ptr()


def test_models_are_read_one_after_the_other_with_only_what_is_needed_again_held(store, states, monkeypatch):
    weights, blobs = store_models(store, states, SHARED, NAMES)
    asked, read_blob = [], store.read_blob
    monkeypatch.setattr(store, "read_blob", lambda sha: asked.append(sha) or read_blob(sha))
    read = reader_of(store, [ReleasedQuery(query=a_query(), weights=each) for each in weights.values()])
    assert all(same(load_state(read, weights[query], {}), states[query]) for query in states)
    assert sorted(asked) == sorted(blobs), "each once"
    assert read(weights["a"]["fc"]) is read(weights["b"]["head.fc"])
    assert read(weights["a"][""]) is not read(weights["a"][""])


def shared_at(path, *queries):
    return SharedLayer(signature=path, layer_bytes=8, members=tuple(LayerRef(query, path) for query in queries))


def test_layers_that_the_same_queries_share_at_the_same_paths_are_stored_together(store):
    """In order of appearance, not of the configuration; others by themselves."""
    layers = (shared_at("b", "x", "y"), shared_at("a", "x", "y"), shared_at("three", "x", "y", "z"))
    weights = {path: torch.randn(2) for path in ("a", "b", "three")}
    states = {query: {f"{path}.w": weights[path] for path in "ab"} for query in "xy"} | {"z": {}}
    for query, state in states.items():
        state |= {"three.w": weights["three"], "own.w": torch.randn(3), "b.delta": torch.full((1,), float(ord(query)))}
    names = dict.fromkeys((member for layer in layers for member in layer.members), ("w",))
    held, blobs = store_models(store, states, MergeConfiguration(shared=layers), names)
    assert [sorted(held[query]) for query in "xyz"] == [["", "..a", "three"]] * 2 + [["", "three"]]
    assert held["x"]["..a"] == held["y"]["..a"]
    assert decode(store.read_blob(held["x"]["..a"])).keys() == {"a.w", "b.w"}
    assert sum(info.tensor_bytes for info in blobs.values()) == 3 * 8 + 3 * (3 + 1) * 4
    read = BlobReader(store)
    back = {query: load_state(read, held[query], {}) for query in states}
    assert all(same(back[query], states[query]) for query in states)
    assert back["x"]["b.w"] is back["y"]["b.w"]


def test_a_layer_shared_alone_or_at_other_paths_keeps_its_own_blob(store):
    """So does one of several sizes, of which members take slices."""
    moved = SharedLayer(signature="m", layer_bytes=8, members=(LayerRef("x", "one"), LayerRef("y", "two")))
    extents = tuple(
        Extent(LayerRef(query, "s"), (Tensor("w", (size,), 4 * size),)) for query, size in [("x", 2), ("y", 1)]
    )
    sliced = shared_at("s", "x", "y").model_copy(update={"extents": extents})
    layers = (moved, shared_at("a", "x", "y"), sliced)
    states = {
        query: {f"{path}.w": torch.ones(2), "a.w": torch.zeros(2), "s.w": torch.ones(size)}
        for query, path, size in [("x", "one", 2), ("y", "two", 1)]
    }
    names = dict.fromkeys((member for layer in layers for member in layer.members), ("w",))
    held, _ = store_models(store, states, MergeConfiguration(shared=layers), names)
    assert (sorted(held["x"]), sorted(held["y"])) == (["", "a", "one", "s"], ["", "a", "s", "two"])


def test_two_layers_of_one_model_may_share(store):
    weight = torch.randn(2, 2)
    members = (LayerRef("a", "one"), LayerRef("a", "two"))
    configuration = MergeConfiguration(shared=(SharedLayer(signature="s", layer_bytes=16, members=members),))
    states = {"a": {"one.weight": weight, "two.weight": weight}}
    weights, blobs = store_models(store, states, configuration, dict.fromkeys(members, ("weight",)))
    assert sum(info.tensor_bytes for info in blobs.values()) == 16
    state = load_state(BlobReader(store), weights["a"], {})
    assert state["one.weight"] is state["two.weight"]


def test_an_unchanged_model_is_not_written_again(store, states):
    before, _ = store_models(store, states, MergeConfiguration(), {})
    states["b"]["bn.running_mean"] += 1
    after, _ = store_models(store, states, MergeConfiguration(), {})
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    assert store.unused_blobs() == sorted({before["a"][""], before["b"][""], after["b"][""]})


def test_layers_that_do_not_hold_equal_weights_are_not_stored_as_one(store, states):
    states["b"]["head.fc.weight"][0, 0] += 1
    with pytest.raises(StoreError, match=r"a:fc and b:head\.fc are said to share weights but hold different ones"):
        store_models(store, states, SHARED, NAMES)


def test_a_shared_layer_of_other_precision_is_not_stored_as_one(store, states):
    states["b"]["head.fc.weight"] = states["b"]["head.fc.weight"].double()
    with pytest.raises(StoreError, match="hold different ones"):
        store_models(store, states, SHARED, NAMES)


def test_a_shared_layer_that_a_state_dict_lacks_is_named(store, states):
    del states["b"]["head.fc.bias"]
    with pytest.raises(StoreError, match=r"b:head\.fc is to be shared, but its state dict has no head\.fc\.bias"):
        store_models(store, states, SHARED, NAMES)
    with pytest.raises(StoreError, match=r"b:head\.fc is to be shared, but its state dict or its tensor names"):
        store_models(store, {"a": states["a"]}, SHARED, NAMES)


def test_private_layers_come_in_pieces_and_back_where_they_were(store):
    state = {f"{at}.{short}": torch.rand(2**19 * size) for at in range(20) for short, size in (("w", 1), ("b", 0))}
    state = {"token": torch.rand(5)} | state
    weights, blobs = store_models(store, {"cars": state}, MergeConfiguration(), {})
    assert list(weights["cars"]) == ["", ".8", ".16"]
    assert [blobs[sha].tensor_bytes for sha in weights["cars"].values()] == [2**24 + 20, 2**24, 2**23]
    found = load_state(BlobReader(store), weights["cars"], {})
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_slices_are_stored_as_their_whole_and_come_back_as_views_of_it(store):
    whole = {"fc.weight": torch.randn(4, 5), "fc.bias": torch.randn(4)}
    part = {"head.fc.weight": whole["fc.weight"][:2, :3], "head.fc.bias": whole["fc.bias"][:2]}
    weights, blobs = store_models(store, {"a": whole, "b": part}, SHARED, NAMES)
    assert sum(info.tensor_bytes for info in blobs.values()) == 4 * (4 * 5 + 4)
    assert weights["a"]["fc"] == weights["b"]["head.fc"]
    read, shapes = BlobReader(store), {"head.fc": {"weight": (2, 3), "bias": (2,)}}
    a, b = load_state(read, weights["a"], {}), load_state(read, weights["b"], shapes)
    assert same(a, whole)
    assert same(b, part)
    assert b["head.fc.weight"].data_ptr() == a["fc.weight"].data_ptr()


def test_what_is_no_slice_of_the_largest_is_not_stored_as_one(store):
    whole, wide = {"fc.weight": torch.zeros(4, 5)}, {"head.fc.weight": torch.zeros(2, 6)}
    with pytest.raises(StoreError, match="hold different ones"):
        store_models(store, {"a": whole, "b": wide}, SHARED, dict.fromkeys(MEMBERS, ("weight",)))

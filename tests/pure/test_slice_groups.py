"""Layers of different sizes as slices of the largest: groups, configurations, and what they save."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.grouping import group_layers, group_repeats, group_slices
from gemel_ray.spec.layers import Layer, LayerRef, ModelInventory, Tensor
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4))


def layer(path, shape):
    words = "x".join(map(str, shape))
    return Layer(path, "Linear", words, words, (Tensor("weight", tuple(shape), 4 * shape[0] * shape[1]),))


def model(query, shapes):
    return ModelInventory(query, "net", tuple(layer(f"l{place}", shape) for place, shape in enumerate(shapes)), 8)


MODELS = st.lists(st.lists(SHAPES, min_size=1, max_size=6), min_size=1, max_size=4).map(
    lambda models: [model(chr(97 + place), shapes) for place, shapes in enumerate(models)]
)


@given(MODELS)
def test_every_layer_is_in_one_group_at_most_and_fits_into_all_larger_ones_of_it(models):
    groups = group_slices(models)
    members = [member for group in groups for member in group.members]
    assert len(members) == len(set(members))
    for group in groups:
        ordered = sorted(group.extents, key=lambda extent: -extent.bytes)
        assert all(one.covers(other) for one, other in itertools.pairwise(ordered))
        assert group.layer_bytes == max((extent.bytes for extent in ordered), default=group.layer_bytes)


@given(MODELS)
def test_slices_save_what_repeats_do_and_more_and_count_right(models):
    size = {LayerRef(m.query, each.path): each.bytes for m in models for each in m.layers}
    sliced, repeats = (MergeConfiguration.of(find(models)) for find in (group_slices, group_repeats))
    assert sliced.saved_bytes >= repeats.saved_bytes
    for shared in sliced.shared:
        sizes = [size[member] for member in shared.members]
        assert shared.saved_bytes == sum(sizes) - max(sizes)
        assert [shared.bytes_of(member) for member in shared.members] == sizes


@given(MODELS, st.data())
def test_joined_to_what_is_shared_already_they_give_the_same_in_any_order(models, data):
    exact, sliced = (MergeConfiguration.of(find(models)) for find in (group_layers, group_slices))
    some = MergeConfiguration(shared=tuple(data.draw(st.permutations(exact.shared))[: len(exact.shared) // 2]))
    assert some.joined(sliced.shared).saved_bytes == sliced.saved_bytes
    assert sliced.joined(some.shared).saved_bytes == sliced.saved_bytes


@given(MODELS, st.data())
def test_without_some_members_the_copy_is_as_large_as_the_largest_that_is_left(models, data):
    for shared in MergeConfiguration.of(group_slices(models)).shared:
        kept = data.draw(st.sets(st.sampled_from(shared.members)))
        left = shared.among(kept)
        if len(kept) < 2:
            assert left is None
            continue
        sizes = [shared.bytes_of(member) for member in left.members]
        assert left.layer_bytes == max(sizes)
        assert left.saved_bytes == sum(sizes) - max(sizes)
        assert bool(left.extents) == (len(set(sizes)) > 1)


def test_a_plain_layer_takes_its_size_from_the_member_that_others_know():
    wide, narrow = model("a", [(4, 4), (2, 2)]), model("b", [(2, 2)])
    pair = MergeConfiguration.of(group_repeats([wide, narrow]))
    assert [len(shared.members) for shared in pair.shared] == [2]
    joined = pair.joined(MergeConfiguration.of(group_slices([wide])).shared)
    assert joined.slices_of("b") == {"l0": {"weight": (2, 2)}}
    assert joined.slices_of("a") == {"l1": {"weight": (2, 2)}}
    assert joined.saved_bytes == 2 * 16


def test_what_does_not_fit_into_each_other_is_not_shared():
    tall, wide = model("a", [(4, 1), (1, 1)]), model("b", [(1, 4), (1, 1)])
    one, other = (MergeConfiguration.of(group_slices([each])) for each in (tall, wide))
    ones = MergeConfiguration.of(group_repeats([tall, wide]))
    with pytest.raises(ValueError, match="is no slice of"):
        one.joined((*other.shared, *ones.shared)).joined(ones.shared)
    (pair,) = group_repeats([tall, wide])
    assert one.can_take(pair)
    assert not one.joined(other.shared).can_take(pair)


def test_layers_of_different_sizes_need_to_say_how_large_they_are():
    one = SharedLayer(signature="s", layer_bytes=4, members=(("a", "x"), ("b", "x")))
    other = SharedLayer(signature="t", layer_bytes=8, members=(("a", "x"), ("c", "x")))
    with pytest.raises(ValueError, match="differ in size"):
        MergeConfiguration(shared=(one,)).joined((other,))


def test_slices_are_written_and_read():
    configuration = MergeConfiguration.of(group_slices([model("a", [(4, 4), (2, 3), (1, 3)])]))
    assert configuration.slices_of("a") == {"l1": {"weight": (2, 3)}, "l2": {"weight": (1, 3)}}
    assert MergeConfiguration.model_validate_json(configuration.model_dump_json()) == configuration

"""The picture's geometry: columns, blocks, ties."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.grouping import group_layers, group_repeats, group_slices
from gemel_ray.report.picture import lay_out
from gemel_ray.report.tables import shared_table
from gemel_ray.spec.layers import Layer, ModelInventory, Tensor
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.units import readable_time


def model(query, sizes, other=3, builder="net"):
    """Layers of these sizes; equal sizes have equal signatures."""
    layers = (Layer(f"l{place}", "Conv2d", f"s{size}", f"s{size}", (Tensor("weight", (size,), size),))
              for place, size in enumerate(sizes))  # fmt: skip
    return ModelInventory(query, builder, tuple(layers), other)


MODELS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=5).map(
    lambda models: [model(f"q{place}", sizes, other=place % 2) for place, sizes in enumerate(models)]
)


RULES = st.sampled_from([group_layers, group_repeats, group_slices])


@given(MODELS, RULES)
def test_blocks_fill_their_columns_without_gap_or_overlap(models, find):
    picture = lay_out(models, MergeConfiguration.of(find(models)))
    for column, inventory in zip(picture.columns, models, strict=True):
        blocks = [block for block in picture.blocks if block.column == column.place]
        edges = [block.top_bytes for block in blocks] + [inventory.total_bytes]
        assert edges[0] == 0
        assert [b.top_bytes + b.height_bytes for b in blocks] == edges[1:]
        assert column.height_bytes == inventory.total_bytes


@given(MODELS, RULES)
def test_counted_bytes_are_what_the_merge_leaves(models, find):
    configuration = MergeConfiguration.of(find(models))
    whole = sum(inventory.total_bytes for inventory in models)
    assert lay_out(models, configuration).counted_bytes == whole - configuration.saved_bytes


@given(MODELS, RULES)
def test_ties_hold_each_share_together_and_are_as_few_as_can_be(models, find):
    picture = lay_out(models, MergeConfiguration.of(find(models)))
    ties = Counter(tie.start.share for tie in picture.ties)
    for place, layer in enumerate(picture.shares):
        assert ties[place] == len(layer.members) - 1
        assert len(_reached(picture, place)) == len(layer.members)
    assert all(tie.start.share == tie.end.share is not None for tie in picture.ties)
    assert all(tie.start.column <= tie.end.column for tie in picture.ties)


def _reached(picture, share):
    ties = [tie for tie in picture.ties if tie.start.share == share]
    found = {ties[0].start}
    for _ in ties:
        found |= {tie.end for tie in ties if tie.start in found} | {tie.start for tie in ties if tie.end in found}
    return found


def test_models_of_one_builder_stand_side_by_side():
    models = [model("a", [1]), model("b", [2], builder="other"), model("c", [1])]
    assert [column.query for column in lay_out(models, MergeConfiguration()).columns] == ["a", "c", "b"]


def test_repeats_within_a_model_are_tied_within_it():
    models = [model("a", [5, 5, 5])]
    picture = lay_out(models, MergeConfiguration.of(group_repeats(models)))
    assert [tie.is_within for tie in picture.ties] == [True, True]
    assert [block.is_counted for block in picture.blocks] == [True, False, False, True]


def test_a_slice_costs_nothing_whatever_stands_first_and_the_table_counts_slices_and_many_members():
    models = [model("a", [2, 4] * 8), model("b", [1])]
    configuration = MergeConfiguration.of(group_slices(models))
    picture = lay_out(models, configuration)
    assert [block.layer for block in picture.blocks if block.share is not None and block.is_counted] == ["l1"]
    (row,) = shared_table(SimpleNamespace(picture=picture)).rows
    assert row[1:4] == ("16 of a, 1 of b", "4 B", "17, 9 as slices")


def test_nothing_gives_an_empty_picture():
    assert lay_out([], MergeConfiguration()).height_bytes == 0


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("2026-11-26T09:05:06+00:00", "2026-11-26 09:05 UTC"),
        ("2026-11-26T09:05:06.25Z", "2026-11-26 09:05 UTC"),
        ("2026-11-26T09:05:06+02:00", "2026-11-26T09:05:06+02:00"),
        ("yesterday", "yesterday"),
    ],
)
def test_times_are_told_as_people_write_them_where_nothing_is_lost(written, told):
    assert readable_time(written) == told

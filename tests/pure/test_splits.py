"""Splits by blocks of time."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.splits import split_frames


@given(st.integers(100, 3000))
def test_every_split_gets_its_part_and_gate_blocks_keep_their_distance(frames):
    splits = split_frames([None] * frames)
    assert len(splits) == frames
    assert splits.count("train") >= 0.5 * frames
    assert splits.count("validation") >= 0.1 * frames
    assert splits.count("gate") >= 0.08 * frames
    assert all({one, other} != {"gate", "train"} for one, other in pairwise(splits))


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["train", "test"])), min_size=1, max_size=300))
def test_the_data_s_own_test_frames_are_the_gate_and_nothing_else_is(frames):
    labels, sides = zip(*frames, strict=True)
    splits = split_frames(labels, sides)
    assert [split == "gate" for split in splits] == [side == "test" for side in sides]
    for label in "ab":
        mine = [split for split, (name, side) in zip(splits, frames, strict=True) if name == label and side == "train"]
        assert len(mine) < 10 or "validation" in mine

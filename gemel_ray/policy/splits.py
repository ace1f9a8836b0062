"""Train, validation and gate splits by blocks of time, so that neighbouring frames stay on one side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

Split = Literal["train", "validation", "gate"]

# Twenty blocks: a camera's slow changes (light, traffic) reach all three splits.
_BLOCKS = 20
_CYCLE: tuple[Split, ...] = ("train", "train", "validation", "train", "gate")
# Frames at either end of a gate block resemble their neighbours in training; they are left out.
_GAP_FRACTION = 0.1
_VALIDATION_EVERY = 5
_STRATUM_BLOCKS = 10


def split_frames(strata: Sequence[str | None], fixed: Sequence[str | None] | None = None) -> tuple[Split | None, ...]:
    """The split of each frame, given in order of time; None for frames left out as a gap.

    `strata` is each frame's class where known. Where the data itself fixes 'train' and 'test' (`fixed`), its test
    frames are the gate, and every fifth block of each class's training frames is validation: time blocks alone can
    leave a class out of validation altogether (measured on intel-bottles).
    """
    if fixed is not None and any(side is not None for side in fixed):
        return _within_fixed(strata, fixed)
    return tuple(_by_block(place, len(strata)) for place in range(len(strata)))


def _by_block(place: int, frames: int) -> Split | None:
    block, offset = divmod(place * _BLOCKS, frames)
    split = _CYCLE[block % len(_CYCLE)]
    gap = max(_GAP_FRACTION * frames, _BLOCKS)  # at least one frame, however short the feed
    if split == "gate" and (offset < gap or offset + _BLOCKS > frames - gap):
        return None
    return split


def _within_fixed(strata: Sequence[str | None], fixed: Sequence[str | None]) -> tuple[Split | None, ...]:
    splits: list[Split | None] = ["gate" if side == "test" else None for side in fixed]
    by_class: dict[str | None, list[int]] = defaultdict(list)
    for place, side in enumerate(fixed):
        if side == "train":
            by_class[strata[place]].append(place)
    for places in by_class.values():
        for rank, place in enumerate(places):
            block = rank * _STRATUM_BLOCKS // len(places)
            splits[place] = "validation" if block % _VALIDATION_EVERY == _VALIDATION_EVERY - 1 else "train"
    return tuple(splits)

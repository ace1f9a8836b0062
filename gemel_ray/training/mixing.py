"""Frames that no camera has taken: two blended into one, for originals to answer."""

from __future__ import annotations

import numpy as np


def blended(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` blends of two of `images` (uint8, N x H x W x 3), each with a share of its own, drawn evenly.

    Between the frames of a few hours lies what the next hours show: an original's answers to blends teach what it
    answers there, as labels never could (mixup, Zhang et al., ICLR 2018; as a teacher's task, Beyer et al., CVPR
    2022). Measured on five real cameras, half-width ResNet18s of one family, 150 steps: worst gate agreement .975
    without, .981 with blends and weighted losses.
    """
    one, other = (images[rng.integers(len(images), size=count)] for _ in range(2))
    share = rng.random((count, 1, 1, 1), dtype=np.float32)
    return np.rint(share * one + (1 - share) * other).astype(np.uint8)

"""Drift: do a merged model's answers still agree with its original's as well as they have to?

Sampled frames are compared one by one and gathered in blocks; a block's score, from 0 to 1, is the release's own
measure over its frames: agreement within each class averaged over classes, or F1 of boxes. Every block is a bet against
"the expected score, whatever was seen before, is at least the floor": a stake s multiplies capital by
1 + s (floor - score), which gains nothing on average while that is true (Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting", JRSS B 86, 2024). Each stake's bets started at every block are summed, as
Shiryaev and Roberts do, and stakes are averaged; drift is found once the sum reaches N. Blocks before a false alarm are
then at least N on average, whatever the scores' distribution and without end (Shin, Ramdas and Rinaldo, "E-detectors:
a nonparametric framework for sequential change detection", New England Journal of Statistics in Data Science, 2024).

Neighbouring frames are alike, and a hard scene spoils all of them. The promise holds as far as a block's expected
score does not depend on the blocks before, so frames are to be sampled far apart, seconds and not milliseconds.
When a block ends depends on what the original answers and never on whether it was answered alike: nothing is won by
ending early.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

Verdict = Literal["holding", "drifted"]

# Stakes as shares of the largest one that can lose nothing but its capital: small ones find small drops, large ones
# find large drops soon.
_STAKE_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.95)
# At a floor of 1 a single miss would be proof, and the largest stake infinite.
_HIGHEST_FLOOR = 0.995
BLOCK_FRAMES = 8
# The running estimate weighs about so many of the last blocks.
_ESTIMATE_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """What to hold a query against, and how seldom to be wrong about it.

    Drift is agreement below `target` less `margin`: releases come out of the search close to their target, and a
    monitor without a margin would, given enough time, find them to be a hair below it.
    """

    target: float
    # Blocks between false alarms, at least, on average.
    blocks_between: float
    margin: float = 0.02
    # A block has `block_frames` or more, and goes on until it has `kind_frames` of every class shown lately (or so many
    # boxes), but not beyond `most_frames`.
    block_frames: int = BLOCK_FRAMES
    kind_frames: int = 4
    most_frames: int = 64

    @property
    def floor(self) -> float:
        """The lowest agreement that is no drift."""
        return min(max(self.target - self.margin, 0.0), _HIGHEST_FLOOR)


@dataclass(frozen=True, slots=True)
class Compared:
    """One frame's answers compared. `kind` is the original's class, or 'boxes'; agreement is right / (right + wrong).

    A classified frame is right 1 or wrong 1. Of boxes, a matched pair is right 2, a surplus or missed box wrong 1, so
    that agreement is F1. `expected` is what the original answered: 1 frame, or so many boxes.
    """

    kind: str
    right: float
    wrong: float
    expected: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """Frames since the last bet; one entry of `counts` for each kind, in order of appearance."""

    frames: int = 0
    counts: tuple[Compared, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the original answered in it."""
        return tuple(count.kind for count in self.counts if count.expected)

    @property
    def score(self) -> float:
        """The mean over kinds of the agreement within each; 1 where there was nothing to get wrong."""
        judged = [count.right / (count.right + count.wrong) for count in self.counts if count.right + count.wrong > 0]
        return fmean(judged) if judged else 1.0

    def joined(self, compared: Compared) -> Block:
        """With one more frame."""
        held = {count.kind: count for count in self.counts}
        known = held.get(compared.kind, Compared(compared.kind, 0, 0, 0))
        held[compared.kind] = Compared(
            compared.kind,
            known.right + compared.right,
            known.wrong + compared.wrong,
            known.expected + compared.expected,
        )
        return Block(self.frames + 1, tuple(held.values()))


@dataclass(frozen=True, slots=True)
class DriftState:
    """All that a monitor remembers of one query and one release."""

    # One sum for each stake; see the module.
    evidence: tuple[float, ...] = (0.0,) * len(_STAKE_FRACTIONS)
    frames: int = 0
    blocks: int = 0
    # Weighted mean of the last blocks' scores; None before the first.
    agreement: float | None = None
    block: Block = Block()
    # What the last block showed of every kind that is still waited for.
    awaited: tuple[str, ...] = ()
    # The sampled frame at which drift was found; nothing undoes it.
    drifted_at: int | None = None

    @property
    def verdict(self) -> Verdict:
        """What is known now."""
        return "holding" if self.drifted_at is None else "drifted"


def observe(state: DriftState, compared: Compared, settings: DriftSettings) -> DriftState:
    """The state after one more sampled frame."""
    block, frames = state.block.joined(compared), state.frames + 1
    if not is_whole(block, state.awaited, settings):
        return replace(state, block=block, frames=frames)
    evidence = tuple(_bets(state.evidence, block.score, settings))
    found = state.drifted_at
    if found is None and fmean(evidence) >= settings.blocks_between:
        found = frames
    return DriftState(
        evidence=evidence,
        frames=frames,
        blocks=state.blocks + 1,
        agreement=_estimate(state, block.score),
        awaited=block.kinds,
        drifted_at=found,
    )


def is_whole(block: Block, awaited: Iterable[str], settings: DriftSettings) -> bool:
    """Whether a block may be judged: enough frames of all that the original shows, or as many as a block may have."""
    if block.frames < settings.block_frames:
        return False
    expected = {count.kind: count.expected for count in block.counts}
    wanted = {*awaited, *block.kinds}
    enough = bool(wanted) and all(expected.get(kind, 0) >= settings.kind_frames for kind in wanted)
    return enough or block.frames >= settings.most_frames


def _bets(evidence: Iterable[float], score: float, settings: DriftSettings) -> Iterable[float]:
    largest = 1 / (1 - settings.floor)
    for fraction, gathered in zip(_STAKE_FRACTIONS, evidence, strict=True):
        factor = max(0.0, 1 + fraction * largest * (settings.floor - score))
        # Once drift is found, more of the same must not overflow.
        yield min((1 + gathered) * factor, 1e3 * len(_STAKE_FRACTIONS) * settings.blocks_between)


def _estimate(state: DriftState, score: float) -> float:
    if state.agreement is None:
        return score
    weight = max(1 / (state.blocks + 1), 1 / _ESTIMATE_BLOCKS)
    return state.agreement + weight * (score - state.agreement)


def evidence_fraction(state: DriftState, settings: DriftSettings) -> float:
    """How much of what it takes to find drift there is: 1 is drift."""
    return fmean(state.evidence) / settings.blocks_between


def blocks_between(days: float, *, sample_every_s: float, block_frames: int = BLOCK_FRAMES) -> float:
    """`DriftSettings.blocks_between` for a false alarm in so many days: no block is shorter than `block_frames`."""
    return max(1.0, days * 86_400 / (sample_every_s * block_frames))

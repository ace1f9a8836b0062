"""The drift test: what it promises without drift, how soon it finds drift, and what it must not depend on."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.drift import (
    Block,
    Compared,
    DriftSettings,
    DriftState,
    blocks_between,
    evidence_fraction,
    is_whole,
    observe,
)

SETTINGS = DriftSettings(target=0.95, blocks_between=200)
FRAMES = st.builds(
    lambda kind, right: Compared(kind, float(right), float(not right)),
    st.sampled_from(["background", "car", "person"]),
    st.booleans(),
)
BOXES = st.builds(
    lambda matched, surplus, missed: Compared("boxes", 2.0 * matched, surplus + missed, matched + missed),
    *[st.integers(0, 3)] * 3,
)
STREAMS = st.lists(FRAMES, max_size=300) | st.lists(BOXES, max_size=300)


def frame(kind="car", right=True):
    return Compared(kind, float(right), float(not right))


def after(stream, settings=SETTINGS, state=None):
    state = state or DriftState()
    for compared in stream:
        state = observe(state, compared, settings)
    return state


def answers(rng, agreement, share=0.5):
    """Frames without end; each class is answered alike with the same chance."""
    while True:
        yield frame("car" if rng.random() < share else "background", rng.random() < agreement)


def frames_until_drift(seed, agreement, most, settings=SETTINGS):
    state, stream = DriftState(), answers(random.Random(seed), agreement)
    while state.drifted_at is None and state.frames < most:
        state = observe(state, next(stream), settings)
    return state.drifted_at


@given(STREAMS)
def test_every_frame_counts_once_and_blocks_keep_their_bounds(stream):
    state, held = DriftState(), 0
    for compared in stream:
        before, state = state, observe(state, compared, SETTINGS)
        if state.blocks > before.blocks:
            assert SETTINGS.block_frames <= held + 1 <= SETTINGS.most_frames
        held = state.block.frames
    assert state.frames == len(stream)


@given(STREAMS)
def test_evidence_is_never_negative_and_the_estimate_is_a_fraction(stream):
    state = after(stream)
    assert all(found >= 0 for found in state.evidence)
    assert state.agreement is None or 0 <= state.agreement <= 1
    assert (state.agreement is None) == (state.blocks == 0)


@given(STREAMS, STREAMS)
def test_a_state_is_a_value_and_drift_is_never_taken_back(first, second):
    state = after(first)
    again = after(first)
    assert state == again
    later = after(second, state=state)
    assert state == again, "observing changes no earlier state"
    assert state.drifted_at is None or later.drifted_at == state.drifted_at


@given(STREAMS)
def test_when_a_block_ends_does_not_depend_on_how_it_was_answered(stream):
    spoilt = [Compared(c.kind, 0.0, c.right + c.wrong, c.expected) for c in stream]
    assert after(stream).blocks == after(spoilt).blocks


@given(st.lists(FRAMES, min_size=1, max_size=64))
def test_the_score_of_classified_frames_is_balanced_agreement(stream):
    block = Block()
    for compared in stream:
        block = block.joined(compared)
    shown = Counter(compared.kind for compared in stream)
    recalls = [sum(c.right for c in stream if c.kind == kind) / frames for kind, frames in shown.items()]
    assert block.score == pytest.approx(sum(recalls) / len(recalls))


@given(st.lists(BOXES, min_size=1, max_size=64))
def test_the_score_of_boxes_is_f1(stream):
    block = Block()
    for compared in stream:
        block = block.joined(compared)
    right, wrong = sum(c.right for c in stream), sum(c.wrong for c in stream)
    assert block.score == pytest.approx(right / (right + wrong) if right + wrong else 1)


@given(st.floats(0.05, 1), st.floats(0, 1))
def test_a_better_block_never_raises_the_evidence(target, worse):
    settings = DriftSettings(target=target, blocks_between=1e9, block_frames=1, kind_frames=1)
    bad = observe(DriftState(), Compared("boxes", worse, 1 - worse), settings)
    good = observe(DriftState(), Compared("boxes", 1.0, 0.0), settings)
    assert all(g <= b + 1e-12 for g, b in zip(good.evidence, bad.evidence, strict=True))


@given(st.floats(0.05, 1), st.integers(1, 30), st.integers(0, 30))
def test_no_bet_gains_on_average_at_the_floor(target, worse, better):
    """The promise rests on this: two scores whose mean is the floor leave capital as it was, in expectation."""
    settings = DriftSettings(target=target, blocks_between=1e12, block_frames=1, kind_frames=1)
    low, high = settings.floor * worse / 31, settings.floor + (1 - settings.floor) * better / 31
    chance = (high - settings.floor) / (high - low)
    state = after([Compared("boxes", 0.9, 0.1)] * 3, settings)
    ends = [observe(state, Compared("boxes", score, 1 - score), settings).evidence for score in (low, high)]
    for before, at_low, at_high in zip(state.evidence, *ends, strict=True):
        assert chance * at_low + (1 - chance) * at_high <= (1 + before) * (1 + 1e-9)


def test_perfect_agreement_is_never_drift_and_none_at_all_is_found_in_a_few_blocks():
    perfect = after([frame(kind) for _ in range(5000) for kind in ("car", "background")])
    assert (perfect.verdict, perfect.agreement) == ("holding", 1)
    lost = after([frame(kind, right=False) for _ in range(100) for kind in ("car", "background")])
    assert lost.verdict == "drifted"
    assert lost.drifted_at <= 3 * SETTINGS.block_frames


def test_false_alarms_are_rarer_than_asked_for_at_the_very_floor():
    """100 runs at the lowest agreement that is no drift: with 200 blocks between alarms, 50 blocks see few of them."""
    found = [frames_until_drift(seed, SETTINGS.floor, 50 * SETTINGS.block_frames) for seed in range(100)]
    assert sum(at is not None for at in found) <= 25


def test_larger_drops_are_found_sooner():
    delays = {
        agreement: sorted(frames_until_drift(seed, agreement, 20_000) or 20_000 for seed in range(15))[7]
        for agreement in (0.85, 0.7, 0.3)
    }
    assert delays[0.85] > delays[0.7] > delays[0.3]
    assert delays[0.3] < 60


def test_drift_after_a_long_quiet_time_is_found_as_soon_as_at_the_start():
    rng = random.Random(4)
    good, bad = answers(rng, 1.0), answers(rng, 0.5)
    quiet = after([next(good) for _ in range(20_000)])
    late = after([next(bad) for _ in range(400)], state=quiet)
    assert late.verdict == "drifted"
    assert late.drifted_at - quiet.frames < 150


def test_a_rare_class_is_waited_for_but_not_for_ever():
    settings = DriftSettings(target=0.9, blocks_between=100)
    mixed = after([frame("car")] * 4 + [frame("background")] * 4, settings)
    assert (mixed.blocks, mixed.awaited) == (1, ("car", "background"))
    waiting = after([frame("background")] * 63, settings, mixed)
    assert waiting.blocks == 1
    whole = observe(waiting, frame("background"), settings)
    assert (whole.blocks, whole.awaited) == (2, ("background",))
    assert after([frame("background")] * 8, settings, whole).blocks == 3


def test_a_rare_class_alone_can_drift():
    rng = random.Random(2)
    stream = (frame("car", False) if rng.random() < 0.05 else frame("background") for _ in range(2000))
    assert after(stream).verdict == "drifted"


def test_a_target_of_one_stays_finite():
    settings = DriftSettings(target=1.0, blocks_between=1e6, margin=0)
    state = after([frame(right=False)] * 400, settings)
    assert state.verdict == "drifted"
    assert all(found < float("inf") for found in state.evidence)


def test_an_empty_street_ends_a_detectors_block_and_is_agreement():
    nothing = Compared("boxes", 0.0, 0.0, 0)
    state = after([nothing] * SETTINGS.most_frames)
    assert (state.blocks, state.agreement, state.awaited) == (1, 1.0, ())
    assert not is_whole(Block(10, (nothing,)), ("boxes",), SETTINGS)


def test_days_become_blocks():
    assert blocks_between(10, sample_every_s=10, block_frames=8) == 10 * 86_400 / 80
    assert blocks_between(1e-9, sample_every_s=10) == 1
    state = after([frame(right=False)] * 100)
    assert evidence_fraction(DriftState(), SETTINGS) == 0
    assert evidence_fraction(state, SETTINGS) >= 1

"""The arena: pieces never overlap, memory never exceeds the limit, and what is trimmed is really gone."""

import mmap
import random
from pathlib import Path

import pytest
import torch

from gemel_ray.engine.arena import HostArena, arena_for

PAGE = mmap.PAGESIZE
STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages")


def process_bytes():
    """Bytes of this process that are in memory right now."""
    return int(STATM.read_text().split()[1]) * PAGE


def test_pieces_of_any_sizes_coming_and_going_keep_their_bytes_within_the_limit():
    """Sizes differ a thousandfold, and as many bytes are in use as the budget has: no gap may cost memory."""
    rng, budget_bytes = random.Random(5), 4 << 20
    arena, pieces = HostArena(budget_bytes), []
    for number in range(400):
        size = rng.choice([100, 5_000, 70_000, 300_000, 900_000]) + rng.randrange(100)
        while sum(-(-each.numel() // PAGE) * PAGE for each, _ in pieces) + size + PAGE > budget_bytes:
            piece, value = pieces.pop(rng.randrange(len(pieces)))
            assert bool((piece == value).all())
            arena.give_back(piece)
        pieces.append((arena.take(size).fill_(number % 251), number % 251))
        assert arena.held_bytes <= budget_bytes
    assert all(bool((piece == value).all()) for piece, value in pieces)


def test_a_piece_takes_the_memory_of_what_was_given_back():
    arena = HostArena(1 << 20)
    first = arena.take(300_000)
    address = first.data_ptr()
    arena.give_back(first)
    held_bytes = arena.held_bytes
    second = arena.take(200_000)
    assert second.data_ptr() == address
    assert arena.held_bytes == held_bytes


def test_pieces_of_other_sizes_take_what_is_at_hand_wherever_that_is():
    """A large model and several small layers in turn: no page has to be cleared again."""
    arena = HostArena(40 * PAGE)
    kept = arena.take(3 * PAGE).fill_(5)
    large = arena.take(30 * PAGE)
    start, held_bytes = large.data_ptr(), arena.held_bytes
    arena.give_back(large)
    for _ in range(5):
        small = [arena.take(size * PAGE) for size in (9, 1, 9, 4)]
        assert all(start <= piece.data_ptr() < start + 30 * PAGE for piece in small)
        assert arena.held_bytes == held_bytes
        for piece in small:
            arena.give_back(piece)
        large = arena.take(30 * PAGE)
        assert (large.data_ptr(), arena.held_bytes) == (start, held_bytes)
        arena.give_back(large)
    assert bool((kept == 5).all())


def test_of_several_places_at_hand_the_tightest_is_taken():
    arena = HostArena(100 * PAGE)
    wide, _kept, narrow, _last = (arena.take(count * PAGE) for count in (20, 1, 5, 1))
    places = wide.data_ptr(), narrow.data_ptr()
    arena.give_back(wide)
    arena.give_back(narrow)
    assert arena.take(5 * PAGE).data_ptr() == places[1]
    assert arena.take(6 * PAGE).data_ptr() == places[0]


def test_a_limit_takes_what_is_only_at_hand_and_nothing_that_is_in_use():
    arena = HostArena(100 * PAGE)
    kept, gone = arena.take(10 * PAGE).fill_(7), arena.take(30 * PAGE).fill_(9)
    arena.give_back(gone)
    arena.limit(25 * PAGE)
    assert arena.held_bytes == 25 * PAGE
    arena.limit(5 * PAGE)
    assert arena.held_bytes == 10 * PAGE
    assert bool((kept == 7).all())


def test_a_piece_can_be_taken_again_while_its_memory_is_at_hand_and_nobody_has_it():
    arena = HostArena(100 * PAGE)
    first, second, _kept = (arena.take(count * PAGE) for count in (10, 5, 1))
    second.fill_(3)
    arena.give_back(first)
    arena.give_back(second)
    held_bytes = arena.held_bytes
    assert arena.take_again(second)
    assert not arena.take_again(second)
    assert arena.held_bytes == held_bytes
    assert bool((second == 3).all())
    part = arena.take(2 * PAGE)
    assert part.data_ptr() == first.data_ptr()
    assert not arena.take_again(first)
    arena.give_back(part)
    arena.trim()
    assert not arena.take_again(first)
    assert arena.take_again(arena.take(0))


def test_weights_beyond_all_addresses_are_refused():
    arena = HostArena(PAGE)
    with pytest.raises(MemoryError, match="weights exceed the budget"):
        arena.take(100 * PAGE)


def test_every_piece_is_a_storage_of_its_own_size():
    arena = arena_for(torch.device("cpu"), 1 << 20)
    pieces = [arena.take(size) for size in (0, 1, 5_000)]
    assert [piece.untyped_storage().nbytes() for piece in pieces] == [0, 1, 5_000]


@pytest.mark.skipif(not STATM.exists(), reason="reads the process's size from /proc")
def test_trimmed_memory_leaves_the_process():
    arena, before = HostArena(256 << 20), process_bytes()
    pieces = [arena.take(32 << 20).fill_(1) for _ in range(4)]
    assert process_bytes() - before > 120 << 20
    for piece in pieces[:3]:
        arena.give_back(piece)
    arena.trim()
    assert process_bytes() - before < 40 << 20
    assert bool((pieces[3] == 1).all())

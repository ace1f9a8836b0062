"""A set of turns of a round robin, walked in the order of the turns."""

from __future__ import annotations

from collections.abc import Iterator


class TurnSet:
    """Numbers from 0 on. Kept as the bits of one int: a scheduler asks at every event which of fifty queries have
    frames and weights, and intersections of bits, walked without looking at what is absent, make that cheap.
    """

    __slots__ = ("_bits",)

    def __init__(self, bits: int = 0) -> None:
        self._bits = bits

    def set(self, turn: int, is_member: bool) -> None:
        """Put a turn in, or take it out; either may have been so before."""
        if is_member:
            self._bits |= 1 << turn
        else:
            self._bits &= ~(1 << turn)

    def __contains__(self, turn: int) -> bool:
        return bool(self._bits >> turn & 1)

    def __bool__(self) -> bool:
        return self._bits != 0

    def __and__(self, other: TurnSet) -> TurnSet:
        return TurnSet(self._bits & other._bits)

    def __sub__(self, other: TurnSet) -> TurnSet:
        return TurnSet(self._bits & ~other._bits)

    def walk(self, first: int) -> Iterator[int]:
        """All members once, ascending from `first`, then from 0. Those of the moment of the call."""
        below = self._bits & ((1 << first) - 1)
        for bits in (self._bits ^ below, below):
            while bits:
                lowest = bits & -bits
                yield lowest.bit_length() - 1
                bits ^= lowest

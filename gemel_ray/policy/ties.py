"""Things tied together, directly or through others (union-find)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Ties(Generic[T]):
    """Sets of things; anything not seen before is a set of its own."""

    def __init__(self) -> None:
        self._parents: dict[T, T] = {}

    def add(self, thing: T) -> T:
        """The representative of a thing's set."""
        parent = self._parents.setdefault(thing, thing)
        if parent == thing:
            return thing
        self._parents[thing] = found = self.add(parent)
        return found

    def tie(self, one: T, other: T) -> T:
        """Make one set of two things' sets; gives its representative."""
        kept, joining = self.add(one), self.add(other)
        self._parents[joining] = kept
        return kept

    def sets(self) -> tuple[tuple[T, ...], ...]:
        """All sets, in the order in which their first members were seen; members too."""
        found: dict[T, list[T]] = defaultdict(list)
        for thing in self._parents:
            found[self.add(thing)].append(thing)
        return tuple(tuple(members) for members in found.values())

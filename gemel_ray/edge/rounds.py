"""The order of turns, and whose turn was last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemel_ray.edge.turnset import TurnSet
from gemel_ray.spec.plan import PlannedQuery


class RoundRobin:
    """Queries in the order of their turns, walked from the one after the last turn on."""

    def __init__(self, queries: Sequence[PlannedQuery]) -> None:
        self._queries = queries
        self._turn_of = {query.name: turn for turn, query in enumerate(queries)}
        self._last_turn = -1

    def follow(self, queries: Sequence[PlannedQuery]) -> None:
        """Let another order hold, going on after the query whose turn was last, or from the first where it is gone."""
        former = self._queries[self._last_turn].name if self._last_turn >= 0 else ""
        self._queries = queries
        self._turn_of = {query.name: turn for turn, query in enumerate(queries)}
        self._last_turn = self._turn_of.get(former, -1)

    def take(self, query: PlannedQuery) -> None:
        """This query has its turn."""
        self._last_turn = self._turn_of[query.name]

    def turn_of(self, query: PlannedQuery) -> int:
        """The query's place in the order."""
        return self._turn_of[query.name]

    @property
    def next_turn(self) -> int:
        """The place in the order that follows the last turn."""
        return (self._last_turn + 1) % len(self._queries)

    def walk(self, turns: TurnSet) -> Iterator[PlannedQuery]:
        """The queries of these turns."""
        return (self._queries[turn] for turn in turns.walk(self._last_turn + 1))

    def walk_up_to(self, last: PlannedQuery | None, turns: TurnSet) -> Iterator[PlannedQuery]:
        """The queries of these turns that come no later than `last`; all of them for None."""
        first, cycle = self._last_turn + 1, len(self._queries)
        most = cycle if last is None else (self._turn_of[last.name] - first) % cycle
        for turn in turns.walk(first):
            if (turn - first) % cycle > most:
                return
            yield self._queries[turn]

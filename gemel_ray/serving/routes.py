"""Which node answers which query, as the engines told last. Values only: whoever asks them brings the answers here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from gemel_ray.serving.description import Description

# An engine that is silent so often in a row counts as lost; one that died does at once.
_MOST_SILENCES = 2


@dataclass(slots=True)
class _Node:
    # What it said last, which may be that it serves nothing.
    told: Description | None = None
    silences: int = 0
    # Why it is lost; None while it is not. The event is set as long as it is.
    reason: str | None = "it has not answered yet"
    is_lost: asyncio.Event = field(default_factory=asyncio.Event)


class Routes:
    """For one event loop."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self._nodes = {name: _Node() for name in nodes}

    def told(self, node: str, description: Description | None) -> None:
        """A node has said what it serves."""
        found = self._nodes[node]
        found.told, found.silences, found.reason = description, 0, None
        found.is_lost.clear()

    def silent(self, node: str, reason: str) -> None:
        """A node did not answer in time."""
        self._nodes[node].silences += 1
        if self._nodes[node].silences >= _MOST_SILENCES:
            self.lost(node, reason)

    def lost(self, node: str, reason: str) -> None:
        """A node's process or machine is gone. What it served is remembered."""
        self._nodes[node].reason = reason
        self._nodes[node].is_lost.set()

    def lost_event(self, node: str) -> asyncio.Event:
        """Set as long as the node is lost."""
        return self._nodes[node].is_lost

    def home(self, query: str) -> str | None:
        """The node that answers a query; None while there is none."""
        return next((name for name in self._tellers(query) if self._nodes[name].reason is None), None)

    def last_home(self, query: str) -> str | None:
        """The node that answers a query, or did before it was lost."""
        return self.home(query) or next(iter(self._tellers(query)), None)

    def why_not(self, query: str) -> str:
        """Why nobody answers a query."""
        reasons = [f"node {name!r}: {self._nodes[name].reason}" for name in self._tellers(query)]
        return "; ".join(reasons) or f"no node answers query {query!r} at the moment"

    def description(self) -> Description | None:
        """What all nodes serve together, lost ones included: their queries are answered again, here or elsewhere."""
        told = [node.told for node in sorted(self._nodes.values(), key=_is_lost) if node.told is not None]
        if not told:
            return None
        cards = {name: card for found in reversed(told) for name, card in found.queries.items()}
        newest = max(told, key=lambda found: found.release)
        return newest.model_copy(update={"queries": dict(sorted(cards.items()))})

    def _tellers(self, query: str) -> list[str]:
        return [name for name, node in self._nodes.items() if node.told and query in node.told.queries]


def _is_lost(node: _Node) -> bool:
    return node.reason is not None

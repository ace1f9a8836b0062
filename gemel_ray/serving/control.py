"""The controller of a fleet: looks at the store, the nodes and their engines, and takes one step at a time.

It holds nothing that it could not find out again: what is served is the engines' to say, what is wanted the store's.
Neither Ray nor HTTP: its engines and its view of the cluster are given to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from gemel_ray.policy.assigning import Homes, find_homes
from gemel_ray.policy.rollout import Absent, Change, Decision, NodeReport, Rules, decide, homes_now, present, usable
from gemel_ray.policy.sharing import Holding, by_blob, models_of
from gemel_ray.serving.backend import MeasuringError
from gemel_ray.serving.event_log import EventLog
from gemel_ray.serving.status import ControlReply
from gemel_ray.spec.errors import GemelError, StoreError
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import format_bytes
from gemel_ray.weights.store import Store, open_store

log = logging.getLogger(__name__)


# Loading torch and measuring models takes an engine so long at worst.
_BOOT_S = 120.0


class Engines(Protocol):
    """The fleet's engines, by node. Every call ends in time, with a GemelError where the engine does not answer."""

    async def report(self, node: str) -> NodeReport:
        """What it serves."""
        ...

    async def assign(self, change: Change) -> None:
        """Tell it what to serve; returns before it does."""
        ...

    async def costs(self, node: str, release: int) -> DeviceProfile:
        """What a release's queries cost there."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """The release to serve, and what placing its queries takes."""

    manifest: Manifest
    holding: Holding

    @classmethod
    def of(cls, manifest: Manifest) -> Wanted:
        """Of a release."""
        return cls(manifest, by_blob(models_of(manifest)))


class Control:
    """One fleet's controller, for one event loop."""

    def __init__(
        self,
        store: str,
        nodes: Mapping[str, int],
        engines: Engines,
        *,
        release: int | None,
        follow: bool,
        rules: Rules,
        events: EventLog,
        now_s: Callable[[], float],
        gone: Callable[[], Awaitable[frozenset[str]]],
    ) -> None:
        """`nodes` offer so many bytes each. `release` is served whatever HEAD says; without it and without `follow`,
        what HEAD says at first. `gone` names nodes whose machine has left."""
        self._uri = store
        self._memory_bytes = dict(nodes)
        self._engines = engines
        self._release = release
        self._follow = follow
        self._rules = rules
        self._events = events
        self._now_s = now_s
        self._gone = gone
        self._seen_s = dict.fromkeys(nodes, now_s())
        self._wanted: Wanted | None = None
        self._pinned: int | None = None
        self._placed: Wanted | None = None
        self._nodes: dict[str, NodeReport | Absent] = {}
        self._costs: dict[tuple[str, int], DeviceProfile] = {}
        self._homes = Homes({}, {})
        self._placed_for: object = None
        self._decision = Decision(waiting="looking at the fleet for the first time")

    @property
    def reply(self) -> ControlReply:
        """How it stands."""
        decision, change = self._decision, self._decision.change
        return ControlReply(
            target=self._wanted.manifest.release if self._wanted else None,
            pinned=self._pinned,
            gone=tuple(name for name, found in self._nodes.items() if isinstance(found, Absent) and found.is_gone),
            doing=f"{change.node}: {change.why}" if change else decision.waiting,
            blocked=decision.blocked,
            unplaced=dict(self._homes.unplaced),
            is_settled=decision.is_settled,
        )

    @property
    def served(self) -> frozenset[int]:
        """The releases that nodes serve now; of more than one while another is being rolled out."""
        return frozenset(found.release for found in present(self._nodes).values() if found.release and found.queries)

    @property
    def events(self) -> EventLog:
        """What it has seen and done."""
        return self._events

    async def step(self) -> None:
        """Look at everything once, and change at most one node."""
        await asyncio.to_thread(self._look_at_store)
        self._take_in(await self._look_at_nodes())
        if self._wanted is None or (waiting := self._not_up_yet()) is not None:
            self._decision = Decision(waiting="the store has no release yet" if self._wanted is None else waiting)
            return
        wanted, reason = await self._placeable(self._wanted)
        decision = decide(self._nodes, wanted.manifest.release, self._homes.node_of, self._rules)
        if isinstance(reason, MeasuringError):
            decision = replace(decision, waiting=decision.waiting or str(reason))
        elif reason is not None:
            told = f"release {self._wanted.manifest.release} cannot be placed: {reason}"
            decision = replace(decision, blocked=told)
        await self._act(decision)

    def _not_up_yet(self) -> str | None:
        """Nothing is placed at first until all nodes are up: who comes late would be given little."""
        if homes_now(self._nodes) or self._homes.node_of:
            return None
        late = [name for name, found in self._nodes.items() if isinstance(found, Absent) and _may_still_come(found)]
        return f"waiting for {', '.join(late)}" if late else None

    async def _placeable(self, wanted: Wanted) -> tuple[Wanted, GemelError | None]:
        """The release that queries were placed for: the last one that could be, and why, where this one cannot."""
        try:
            await self._place(wanted)
        except GemelError as error:
            if self._placed is None:
                raise
            await self._place(self._placed)
            return self._placed, error
        self._placed = wanted
        return wanted, None

    async def _act(self, decision: Decision) -> None:
        if decision.blocked and decision.blocked != self._decision.blocked:
            self._events.add("release", f"stopped: {decision.blocked}")
        self._decision, change = decision, decision.change
        if change is None:
            return
        try:
            await self._engines.assign(change)
        except GemelError as error:
            log.warning("%s: %s", change.node, error)
            return
        told = f"{change.node}: {change.why} (release {change.release}, {len(change.queries)} queries)"
        self._events.add("release", told, node=change.node)

    # looking

    def _look_at_store(self) -> None:
        """What is to be served; what was so far while the store is away."""
        try:
            store = open_store(self._uri)
            number = self._release or (self._number(store) if self._follow or self._wanted is None else None)
            if number is None or (self._wanted and number == self._wanted.manifest.release):
                return
            self._wanted = Wanted.of(store.manifest(number))
        except StoreError as error:
            self._events.add("store", f"the store cannot be read, what is served stays: {error}")
            return
        self._events.add("release", f"release {number} is to be served")

    def _number(self, store: Store) -> int | None:
        """The pinned release, else HEAD."""
        pinned = store.pinned()
        if pinned != self._pinned:
            told = f"release {self._pinned} is pinned no more" if pinned is None else f"release {pinned} is pinned"
            self._events.add("release", told)
        self._pinned = pinned
        return store.head() if pinned is None else pinned

    async def _look_at_nodes(self) -> dict[str, NodeReport | Absent]:
        gone = await self._gone()
        found = await asyncio.gather(*(self._look_at(name) for name in self._memory_bytes))
        return {
            name: self._absent(name, report, name in gone) if isinstance(report, str) else report
            for name, report in zip(self._memory_bytes, found, strict=True)
        }

    async def _look_at(self, name: str) -> NodeReport | str:
        try:
            return await self._engines.report(name)
        except GemelError as error:
            return str(error)

    def _absent(self, name: str, reason: str, is_gone: bool) -> Absent:
        told = "its machine has left the cluster" if is_gone else reason
        return Absent(told, is_gone, self._now_s() - self._seen_s[name])

    def _take_in(self, nodes: dict[str, NodeReport | Absent]) -> None:
        """Note what has changed since the last look."""
        for name, found in nodes.items():
            before = self._nodes.get(name)
            if isinstance(found, NodeReport):
                self._seen_s[name] = self._now_s()
            if isinstance(found, Absent) and isinstance(before, NodeReport):
                self._events.add("node", f"{name} does not answer: {found.reason}", node=name)
            elif isinstance(found, NodeReport):
                self._note(name, before, found)
        self._nodes = nodes

    def _note(self, name: str, before: NodeReport | Absent | None, now: NodeReport) -> None:
        if isinstance(before, Absent):
            self._events.add("node", f"{name} answers, serving {len(now.queries)} queries", node=name)
        if not isinstance(before, NodeReport):
            return
        if (before.release, before.queries) != (now.release, now.queries):
            came = f"{format_bytes(now.fetched_bytes)} fetched, {now.took_ms / 1e3:.1f} s"
            told = f"{name} serves {len(now.queries)} queries of release {now.release}: {came}"
            self._events.add("release", told, node=name)
        for number in now.refused.keys() - before.refused.keys():
            self._events.add("release", f"{name} keeps release {now.release}: {now.refused[number]}", node=name)

    # placing

    async def _place(self, wanted: Wanted) -> None:
        """Find homes anew when the nodes or the release have changed, or a query has none."""
        names = [name for name in usable(self._nodes, self._rules) if self._is_known(name, wanted)]
        answering = [name for name in names if name in present(self._nodes)]
        key = (wanted.manifest.release, tuple(names))
        if key == self._placed_for or not answering:
            return
        costs = {name: await self._costs_of(name, wanted.manifest.release) for name in names}
        memory_bytes = {name: self._memory_bytes[name] for name in names}
        before, current = self._homes, homes_now(self._nodes) or self._homes.node_of
        silent = {query: home for query, home in self._homes.node_of.items() if home in names and home not in answering}
        self._homes = await asyncio.to_thread(find_homes, wanted.holding, memory_bytes, costs, {**silent, **current})
        self._placed_for = key
        self._tell_homes(before)

    def _is_known(self, name: str, wanted: Wanted) -> bool:
        """Whether a silent node's costs were asked for while it answered."""
        return isinstance(self._nodes[name], NodeReport) or (name, wanted.manifest.release) in self._costs

    async def _costs_of(self, name: str, release: int) -> DeviceProfile:
        if (name, release) not in self._costs:
            self._costs = {key: found for key, found in self._costs.items() if key[0] != name or key[1] == release}
            self._costs[name, release] = await self._engines.costs(name, release)
        return self._costs[name, release]

    def _tell_homes(self, before: Homes) -> None:
        for query, reason in self._homes.unplaced.items():
            if query not in before.unplaced:
                self._events.add("query", f"{query} has nowhere to go: {reason}; its last answer is repeated")
        for query in before.unplaced:
            if query in self._homes.node_of:
                self._events.add("query", f"{query} has a home again: {self._homes.node_of[query]}")
        moved = [
            f"{query} from {home} to {self._homes.node_of[query]}"
            for query, home in before.node_of.items()
            if self._homes.node_of.get(query, home) != home
        ]
        if moved:
            self._events.add("query", "to move: " + ", ".join(moved))


def _may_still_come(found: Absent) -> bool:
    return not found.is_gone and found.since_s < _BOOT_S

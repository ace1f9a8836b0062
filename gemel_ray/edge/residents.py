"""The scheduler's own account of the device: what is resident, what is under way, what has to go."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from gemel_ray.edge.ledger import Ledger
from gemel_ray.edge.loading import Loading
from gemel_ray.edge.turnset import TurnSet
from gemel_ray.policy.eviction import EVICTIONS, furthest_next_use, turns_ahead, turns_of
from gemel_ray.policy.residency import Swap, plan_ahead, that_fit
from gemel_ray.spec.actions import Action, Done, Evict, Infer, Load
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.plan import EdgePlan, PlannedQuery


class Residents:
    """Knows every byte on the device, since every byte moves by an action planned here.

    Never plans to evict what is still on its way: a device cannot.
    """

    def __init__(self, plan: EdgePlan) -> None:
        self._ledger = Ledger(plan.budget_bytes)
        self._plan = plan
        self._eviction = EVICTIONS[plan.eviction]
        self._turns = turns_of([query.weights for query in plan.queries])
        self._ahead: dict[int, Mapping[str, float]] = {}
        self._turn_of = {query.name: turn for turn, query in enumerate(plan.queries)}
        # Reserved, and of these fully arrived.
        self._held: set[str] = set()
        self._arrived: set[str] = set()
        # How many of its weights each query still waits for, and which turns wait for none: asked far more often than
        # weights come and go.
        self._lacking = {query.name: len({*query.weights}) for query in plan.queries}
        self.ready = self._find_ready()
        # Of the weights that a query needs, those that are not held; looked up again only once something has come or
        # gone.
        self._missing_of: dict[str, tuple[str, ...]] = {}
        self._loading = Loading()
        # Counts whatever changes what could be brought in; planning anew for every arrival would be in vain.
        self._moves = 0
        self._tried: tuple[str, int] | None = None
        self._turns_taken = 0
        self._last_used: dict[str, int] = {}

    def follow(self, plan: EdgePlan) -> None:
        """Let another plan hold. What is on the device or on its way stays; what nobody needs any more goes first."""
        former, held = self._plan, self._held
        self._plan = replace(
            plan,
            weight_bytes={weight: former.weight_bytes[weight] for weight in held} | dict(plan.weight_bytes),
            load_ms={weight: former.load_ms[weight] for weight in held} | dict(plan.load_ms),
        )
        self._eviction = EVICTIONS[plan.eviction]
        self._turns = turns_of([query.weights for query in plan.queries])
        self._ahead.clear()
        self._missing_of.clear()
        self._turn_of = {query.name: turn for turn, query in enumerate(plan.queries)}
        self._lacking = {query.name: len({*query.weights} - self._arrived) for query in plan.queries}
        self.ready = self._find_ready()
        self._moves += 1

    def have(self, query: PlannedQuery) -> bool:
        """Whether all the query's weights have fully arrived."""
        return not self._lacking[query.name]

    def expects(self, query: PlannedQuery) -> bool:
        """Whether any of the query's weights is on its way."""
        return self._lacking[query.name] > len({*self._missing(query)})

    def is_coming(self, query: PlannedQuery) -> bool:
        """Whether each of the query's weights is there or on its way."""
        return not self._missing(query)

    def wait_ms(self, query: PlannedQuery, now_ms: float) -> float:
        """Predicted time until the query can compute without ever waiting for weights, if what is missing is loaded
        next: a weight that is needed only after a part of the run may arrive by then."""
        if self.have(query):
            return 0.0
        missing, arrival_ms = self._missing(query), self._loading.left_ms(now_ms)
        if not query.needed_after:
            return arrival_ms + sum(self._plan.load_ms[weight] for weight in missing)
        arrivals_ms = self._loading.each_left_ms(now_ms)
        for weight in missing:
            arrival_ms += self._plan.load_ms[weight]
            arrivals_ms[weight] = arrival_ms
        needed_ms = {weight: query.needed_after.get(weight, 0.0) * query.run_ms[1] for weight in query.weights}
        return max(0.0, *(arrivals_ms.get(weight, 0.0) - needed_ms[weight] for weight in needed_ms))

    def next_arrival_ms(self, now_ms: float) -> float:
        """Predicted time until the first of the loads under way ends; 0 when there are none."""
        return self._loading.next_left_ms(now_ms)

    def is_in_vain(self, query: PlannedQuery) -> bool:
        """Whether there is no use in bringing a query in: nothing has moved since that was last asked, or nothing is
        missing."""
        tried, self._tried = self._tried, (query.name, self._moves)
        return tried == self._tried or not self._missing(query)

    def bring(self, query: PlannedQuery, now_ms: float, *, from_turn: int, workspace_bytes: int) -> list[Action]:
        """Evictions and loads that bring in all of a query's weights that fit beside its workspace.

        `from_turn` is the place in the order from which the distance of next uses counts.
        """
        swap = self._swap(query.weights, workspace_bytes, from_turn=from_turn, pinned=self._loading.weights)
        return self._moved(swap, now_ms)

    def bring_ahead(
        self,
        query: PlannedQuery,
        now_ms: float,
        computing: Infer,
        *,
        until_ms: float,
        from_turn: int,
        sooner: Mapping[str, int],
    ) -> list[Action]:
        """The same while another query computes, beside its weights and workspace.

        `sooner` are queries whose turns come before, and their workspace bytes: nothing of theirs goes. Something is
        evicted only for what arrives before the computation ends: after it the weights just used may go, and no others
        are needed later than those. Free room is filled in any case.
        """
        soon = self._arriving(query, until_ms - now_ms - self._loading.left_ms(now_ms))
        kept = [weight for name in (computing.query, *sooner) for weight in self._weights_of(name)]
        pinned = {*kept, *self._loading.weights, *query.weights}
        workspace_bytes = max(computing.workspace_bytes, *sooner.values(), 0)
        swap = self._swap(soon, workspace_bytes, from_turn=from_turn, pinned=pinned)
        actions = self._moved(swap, now_ms)
        free_bytes = self._room_bytes(workspace_bytes)
        filling = that_fit(self._missing(query), self._plan.weight_bytes, free_bytes)
        return actions + self._load(filling, now_ms)

    def has_room(self, query: PlannedQuery, workspace_bytes: int, *, beside: Collection[str]) -> bool:
        """Whether the query's weights and workspace fit beside weights that must not go."""
        kept = {*query.weights, *self._loading.weights, *(weight for weight in beside if weight in self._held)}
        return sum(self._plan.weight_bytes[weight] for weight in kept) + workspace_bytes <= self._plan.budget_bytes

    def has_free(self, count_bytes: int) -> bool:
        """Whether so many bytes are free without any eviction."""
        return count_bytes <= self._ledger.free_bytes

    def begin_turn(self, query: PlannedQuery, workspace_bytes: int, *, beside: Collection[str]) -> list[Action]:
        """Evictions that make room for an inference, all of whose weights are there; its workspace counts from now."""
        pinned = {*beside, *self._loading.weights}
        swap = self._swap(query.weights, workspace_bytes, from_turn=self._turn_of[query.name], pinned=pinned)
        evictions = self._evict(swap.evict)
        self._ledger.reserve_workspace(workspace_bytes)
        self._moves += 1
        self._turns_taken += 1
        self._last_used |= dict.fromkeys(query.weights, self._turns_taken)
        return evictions

    def end_turn(self, workspace_bytes: int) -> None:
        """Take note of an inference's end."""
        self._ledger.release_workspace(workspace_bytes)
        self._moves += 1

    def loaded(self, done: Done, load: Load) -> None:
        """Take note of a load's end."""
        if load.weight not in self._loading.weights:
            raise ServingError(f"the device ended a load of {load.weight!r} that was never started")
        self._loading.end(load.weight, done.now_ms)
        self._moves += 1
        if done.failure is not None:
            self._forget(load.weight)
            return
        self._arrived.add(load.weight)
        self._count_lacking(load.weight, -1)

    def _missing(self, query: PlannedQuery) -> tuple[str, ...]:
        missing = self._missing_of.get(query.name)
        if missing is None:
            missing = tuple([weight for weight in query.weights if weight not in self._held])
            self._missing_of[query.name] = missing
        return missing

    def _arriving(self, query: PlannedQuery, within_ms: float) -> list[str]:
        """The missing weights that can be loaded in so much time, or the last of them for the better half."""
        arriving = []
        for weight in self._missing(query):
            if within_ms < self._plan.load_ms[weight] / 2:
                break
            within_ms -= self._plan.load_ms[weight]
            arriving.append(weight)
        return arriving

    def _weights_of(self, name: str) -> tuple[str, ...]:
        return self._plan.queries[self._turn_of[name]].weights

    def _swap(self, needed: Sequence[str], workspace_bytes: int, *, from_turn: int, pinned: Collection[str]) -> Swap:
        missing = [weight for weight in needed if weight not in self._held]
        if sum(self._plan.weight_bytes[weight] for weight in missing) <= self._room_bytes(workspace_bytes):
            # The common case, decided without a look at all that is held.
            return Swap((), tuple(dict.fromkeys(missing)))
        return plan_ahead(
            self._held,
            needed,
            self._plan.weight_bytes,
            budget_bytes=self._plan.budget_bytes - workspace_bytes,
            next_use=self._first_to_go(from_turn),
            pinned=pinned,
        )

    def _first_to_go(self, from_turn: int) -> Callable[[str], float]:
        """The eviction policy's number of a weight; weights that nobody needs go before all others."""
        ahead = self._turns_ahead(from_turn)
        if self._eviction is furthest_next_use:
            # Asked of every weight at every swap, and then it is no more than this.
            return ahead.__getitem__
        return lambda weight: (
            self._eviction(int(ahead[weight]), self._turns_ago(weight)) if weight in self._turns else math.inf
        )

    def _turns_ahead(self, from_turn: int) -> Mapping[str, float]:
        """Of each weight's next use. Kept, as turns come round and round."""
        if from_turn not in self._ahead:
            cycle = len(self._plan.queries)
            self._ahead[from_turn] = defaultdict(
                lambda: math.inf,
                {weight: turns_ahead(turns, from_turn, cycle) for weight, turns in self._turns.items()},
            )
        return self._ahead[from_turn]

    def _room_bytes(self, workspace_bytes: int) -> int:
        """What can be loaded beside so much workspace without any eviction."""
        return self._plan.budget_bytes - workspace_bytes - self._ledger.resident_bytes

    def _turns_ago(self, weight: str) -> int:
        return self._turns_taken - self._last_used.get(weight, self._turns_taken)

    def _moved(self, swap: Swap, now_ms: float) -> list[Action]:
        """Account for a swap, and say it in actions."""
        return [*self._evict(swap.evict), *self._load(swap.load, now_ms)]

    def _evict(self, weights: Iterable[str]) -> list[Action]:
        evictions: list[Action] = []
        for weight in weights:
            self._forget(weight)
            evictions.append(Evict(weight))
        return evictions

    def _load(self, weights: Iterable[str], now_ms: float) -> list[Load]:
        loads: list[Load] = []
        for weight in weights:
            load = Load(weight, self._plan.weight_bytes[weight], self._plan.load_ms[weight])
            self._ledger.reserve(weight, load.bytes)
            self._held.add(weight)
            self._look_again(weight)
            loads.append(load)
        if loads:
            self._loading.begin(loads, now_ms)
        return loads

    def _forget(self, weight: str) -> None:
        self._ledger.release(weight)
        self._held.remove(weight)
        self._look_again(weight)
        if weight in self._arrived:
            self._arrived.remove(weight)
            self._count_lacking(weight, 1)

    def _look_again(self, weight: str) -> None:
        """A weight has come or gone."""
        self._moves += 1
        for turn in self._turns.get(weight, ()):
            self._missing_of.pop(self._plan.queries[turn].name, None)

    def _count_lacking(self, weight: str, more: int) -> None:
        for turn in self._turns.get(weight, ()):
            name = self._plan.queries[turn].name
            before = self._lacking[name]
            self._lacking[name] = before + more
            if not before or not before + more:
                self.ready.set(turn, not before + more)

    def _find_ready(self) -> TurnSet:
        ready = TurnSet()
        for turn, query in enumerate(self._plan.queries):
            ready.set(turn, not self._lacking[query.name])
        return ready

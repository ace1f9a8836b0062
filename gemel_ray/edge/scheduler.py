"""The scheduler: events in, actions and verdicts out. Knows no clock, no device and no pixels."""

from __future__ import annotations

from collections.abc import Iterator

from gemel_ray.edge.pending import AllPending
from gemel_ray.edge.residents import Residents
from gemel_ray.edge.rounds import RoundRobin
from gemel_ray.edge.turns import Turn, check_plan
from gemel_ray.edge.verdicts import GONE, LATE, NEWER, WITHDRAWN, Verdicts
from gemel_ray.spec.actions import (
    Action,
    Arrived,
    Done,
    Event,
    Frame,
    Infer,
    Load,
    Replanned,
    Stopped,
    Verdict,
    Withdrawn,
)
from gemel_ray.spec.errors import ServingError, nearest
from gemel_ray.spec.plan import EdgePlan, PlannedQuery


class Scheduler:
    """Round robin over a plan's queries, skipping those with nothing pending.

    One inference computes at a time; one further query is being prepared, its missing weights loaded, meanwhile. A
    work-conserving scheduler prepares the next query in the order that lacks weights, past those that are ready, and
    lets ready ones from behind it compute while nothing else can; a query may start before its last weights have
    arrived, where it needs them only later. All bytes are accounted for, so that a device never has to refuse an
    action.
    """

    def __init__(self, plan: EdgePlan) -> None:
        """Raises OverBudgetError for a query that does not fit at its batch size, ServingError for a plan that is not
        whole or names an eviction policy that is not there."""
        check_plan(plan)
        self._plan = plan
        # The plan to follow once the inference under way has ended.
        self._next: EdgePlan | None = None
        self._is_work_conserving = plan.work_conserving and plan.overlap
        self._residents = Residents(plan)
        self._round = RoundRobin(plan.queries)
        self._pending = AllPending(plan)
        self._verdicts = Verdicts(plan.names)
        self._computing: Turn | None = None
        self._preparing: PlannedQuery | None = None
        # Weights whose load has failed once for the query being prepared.
        self._retried: set[str] = set()
        # Queries that failed when started before all their weights were there.
        self._only_whole: set[str] = set()
        self._stopped = False

    @property
    def plan(self) -> EdgePlan:
        """The plan that is being followed."""
        return self._plan

    @property
    def pending(self) -> int:
        """Frames without a verdict."""
        computing = len(self._computing.frames) if self._computing else 0
        return computing + len(self._pending)

    def handle(self, event: Event) -> list[Action]:
        """What the device is to do next, in this order. ServingError for a frame of an unknown query."""
        if isinstance(event, Arrived):
            self._arrive(event)
        elif isinstance(event, Withdrawn):
            self._verdicts.drop(self._pending.withdraw(event.frame), event.now_ms, WITHDRAWN)
        elif isinstance(event, Stopped):
            self._stopped = True
        elif isinstance(event, Replanned):
            self._take_in(event.plan)
        elif isinstance(event.action, Load):
            self._end_load(event, event.action)
        else:
            self._end_turn(event)
        return self._decide(event.now_ms)

    def take_verdicts(self) -> list[Verdict]:
        """Verdicts since the last call; every frame gets exactly one."""
        return self._verdicts.take()

    def _arrive(self, event: Arrived) -> None:
        name = event.frame.query
        if name not in self._pending:
            raise ServingError(f"no query {name!r} is planned here; {nearest(name, self._pending)}")
        self._verdicts.drop(self._pending.add(event.frame), event.now_ms, NEWER)

    def _take_in(self, plan: EdgePlan) -> None:
        check_plan(plan)
        self._next = plan
        # Frames of new queries may come before the inference under way has ended.
        self._pending.admit(plan.queries)
        self._verdicts.know(self._pending)

    def _follow(self, plan: EdgePlan, now_ms: float) -> None:
        """Go over to another plan between two inferences, with all frames that wait."""
        self._verdicts.drop(self._pending.follow(plan), now_ms, GONE)
        self._verdicts.know(self._pending)
        self._round.follow(plan.queries)
        self._residents.follow(plan)
        self._preparing = None
        self._retried.clear()
        self._is_work_conserving = plan.work_conserving and plan.overlap
        self._plan, self._next = plan, None

    def _end_load(self, done: Done, load: Load) -> None:
        self._residents.loaded(done, load)
        query = self._preparing
        if done.failure is None or query is None or load.weight not in query.weights:
            self._retried.discard(load.weight)
        elif load.weight not in self._retried:
            # The weight is missing again, so it is loaded again with whatever else the turn lacks.
            self._retried.add(load.weight)
        else:
            self._retried.discard(load.weight)
            reason = f"failed: weights {load.weight} did not load: {done.failure}"
            self._verdicts.drop(self._pending.clear(query.name), done.now_ms, reason)
            self._preparing = None

    def _end_turn(self, done: Done) -> None:
        turn = self._computing
        if turn is None or done.action != turn.infer:
            raise ServingError(f"the device ended {done.action}, which was never started")
        self._residents.end_turn(turn.infer.workspace_bytes)
        self._computing = None
        if done.failure is not None:
            again = [frame for frame in turn.frames if turn.is_early and not frame.droppable]
            self._pending.put_back(turn.query.name, again)
            lost = [frame for frame in turn.frames if frame not in again]
            self._verdicts.drop(lost, done.now_ms, f"failed: {done.failure}")
        else:
            self._verdicts.answer(turn, done.now_ms)
        self._note_early(turn, failed=done.failure is not None)

    def _note_early(self, turn: Turn, *, failed: bool) -> None:
        """What was started before its weights were there and failed is not started so again, until it has answered."""
        if not failed:
            self._only_whole.discard(turn.query.name)
        elif turn.is_early:
            self._only_whole.add(turn.query.name)

    def _decide(self, now_ms: float) -> list[Action]:
        actions: list[Action] = []
        if self._next is not None and self._computing is None:
            self._follow(self._next, now_ms)
        self._settle_preparing(now_ms)
        while self._computing is None:
            started = self._start_turn(now_ms)
            actions += started
            before = self._preparing
            self._settle_preparing(now_ms)
            if not started and self._preparing is before:
                break
        if self._preparing is not None and (self._computing is None or self._plan.overlap):
            actions += self._prepare(self._preparing, now_ms)
            if self._computing is None and self._is_work_conserving:
                wait_ms = self._residents.wait_ms(self._preparing, now_ms)
                actions += self._fill(wait_ms, now_ms) or self._start_early(self._preparing, wait_ms, now_ms)
        return actions

    def _settle_preparing(self, now_ms: float) -> None:
        query = self._preparing
        if query is None or self._may_be_left(query):
            query = self._next_to_prepare(now_ms)
        if query is not self._preparing:
            self._retried.clear()
        self._preparing = query

    def _may_be_left(self, query: PlannedQuery) -> bool:
        """Whether another query may be prepared instead. A query whose frames went late while its weights load is kept:
        newer ones may come in time."""
        is_ready = self._residents.have(query)
        if not self._is_work_conserving:
            return not self._pending[query.name] and (self._stopped or is_ready)
        if is_ready:
            return not self._pending[query.name] or self._computing is not None
        return not self._residents.expects(query)

    def _next_to_prepare(self, now_ms: float) -> PlannedQuery | None:
        """The next one in the order with frames.

        A work-conserving scheduler passes over those that are ready and, while there are others, over those that would
        have no frame in time once their weights are there; those that keep losing frames come first.
        """
        if not self._is_work_conserving:
            return next(self._round.walk(self._pending.turns), None)
        lacking = self._pending.turns - self._residents.ready
        if not lacking:
            return None
        free_ms = self._computing.until_ms if self._computing else now_ms
        for query in self._verdicts.starving_first(self._round.walk(lacking)):
            start_ms = max(free_ms, now_ms + self._residents.wait_ms(query, now_ms))
            if self._pending[query.name].will_have(start_ms):
                return query
        return next(self._round.walk(lacking), None)

    def _ready_before(self, last: PlannedQuery | None) -> Iterator[PlannedQuery]:
        """Queries up to `last`, in the order of their turns, that have both frames and weights."""
        return self._round.walk_up_to(last, self._pending.turns & self._residents.ready)

    def _start_turn(self, now_ms: float) -> list[Action]:
        """Start the query being prepared, or one nearer in the order whose weights are there, if one can start now."""
        starving = frozenset(self._verdicts.starving) if self._is_work_conserving else frozenset()
        ready = self._ready_before(self._preparing)
        for query in self._verdicts.starving_first(ready) if starving else ready:
            self._verdicts.drop(self._pending.drop_late(query.name, now_ms), now_ms, LATE)
            batch = self._pending[query.name].choose(now_ms)
            if batch and self._has_room(query, batch):
                # Out of turn, the order stays as it is.
                start = self._infer if query.name in starving else self._take_turn
                return start(query, batch, now_ms)
        return []

    def _fill(self, within_ms: float, now_ms: float) -> list[Action]:
        """Let a query compute that is ready, and done before the weights are there that the next one waits for.

        Of several the one whose own turn is furthest away: its frames would be late by then. Evicts nothing, and
        leaves the order of turns as it is.
        """
        for query in reversed(list(self._ready_before(None))):
            batch = self._pending[query.name].choose(now_ms, within_ms)
            if batch and self._residents.has_free(query.workspace_bytes[len(batch)]):
                return self._infer(query, batch, now_ms)
        return []

    def _start_early(self, query: PlannedQuery, wait_ms: float, now_ms: float) -> list[Action]:
        """Start the query being prepared before all its weights are there, where it would not wait for them long: less
        than half as long as until the next of them arrives, when there would be another chance."""
        if (
            query.name in self._only_whole
            or not self._residents.is_coming(query)
            or wait_ms > self._residents.next_arrival_ms(now_ms) / 2
        ):
            return []
        batch = self._pending[query.name].choose(now_ms + wait_ms)
        return self._take_turn(query, batch, now_ms) if batch and self._has_room(query, batch) else []

    def _has_room(self, query: PlannedQuery, batch: tuple[Frame, ...]) -> bool:
        return self._residents.has_room(query, query.workspace_bytes[len(batch)], beside=self._beside(query))

    def _beside(self, query: PlannedQuery) -> tuple[str, ...]:
        """Weights that another query's turn must not push out. What a work-conserving scheduler loads far ahead may go
        again, since turns keep their order."""
        if self._is_work_conserving or self._preparing is None or query is self._preparing:
            return ()
        return self._preparing.weights

    def _take_turn(self, query: PlannedQuery, batch: tuple[Frame, ...], now_ms: float) -> list[Action]:
        actions = self._infer(query, batch, now_ms)
        self._round.take(query)
        if query is self._preparing:
            self._preparing = None
        return actions

    def _infer(self, query: PlannedQuery, batch: tuple[Frame, ...], now_ms: float) -> list[Action]:
        self._verdicts.drop(self._pending.take(query.name, batch), now_ms, NEWER)
        size, frames = len(batch), tuple(frame.frame for frame in batch)
        infer = Infer(query.name, frames, query.workspace_bytes[size], query.run_ms[size], query.release)
        evictions = self._residents.begin_turn(query, infer.workspace_bytes, beside=self._beside(query))
        until_ms = now_ms + self._residents.wait_ms(query, now_ms) + infer.predicted_ms
        self._computing = Turn(query, batch, infer, until_ms, is_early=not self._residents.have(query))
        return [*evictions, infer]

    def _prepare(self, query: PlannedQuery, now_ms: float) -> list[Action]:
        """Load what fits of the query's missing weights: beside the turn that computes, or at once."""
        if self._computing is not None:
            return self._prepare_beside(self._computing, query, now_ms)
        if any(self._sooner_than(query)):
            # They only wait for loads under way to end, and must not lose their weights meanwhile.
            return []
        actions: list[Action] = []
        if not self._residents.is_in_vain(query):
            workspace_bytes = self._pending[query.name].next_workspace_bytes
            actions = self._residents.bring(
                query, now_ms, from_turn=self._ahead_from(query), workspace_bytes=workspace_bytes
            )
        start_ms = now_ms + self._residents.wait_ms(query, now_ms)
        self._verdicts.drop(self._pending.drop_late(query.name, start_ms), now_ms, LATE)
        return actions

    def _prepare_beside(self, turn: Turn, query: PlannedQuery, now_ms: float) -> list[Action]:
        if self._residents.is_in_vain(query):
            return []
        return self._residents.bring_ahead(
            query,
            now_ms,
            turn.infer,
            until_ms=turn.until_ms,
            from_turn=self._ahead_from(query),
            sooner={other.name: self._pending[other.name].next_workspace_bytes for other in self._sooner_than(query)},
        )

    def _sooner_than(self, query: PlannedQuery) -> Iterator[PlannedQuery]:
        """Queries that a work-conserving scheduler has passed over for this one, as they are ready."""
        if self._is_work_conserving:
            yield from (other for other in self._ready_before(query) if other is not query)

    def _ahead_from(self, query: PlannedQuery) -> int:
        """The turn from which the distance of next uses counts while this query's weights are brought in."""
        if self._is_work_conserving:
            return self._round.next_turn
        return self._round.turn_of(query)

"""The simulated device: the same protocol as the real one on a virtual clock. No weights, no pixels, no waiting."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence

from gemel_ray.edge.ledger import Ledger
from gemel_ray.spec.actions import Action, Arrived, Done, Event, Evict, Frame, Infer, Load, Replanned, Stopped
from gemel_ray.spec.plan import EdgePlan, PlannedQuery


def never_fails(action: Load | Infer) -> str | None:
    """Every action succeeds."""
    return None


class SimulatedDevice:
    """Implements edge.device.Device. Every action takes exactly the time that `costs` gives it.

    The lanes do not slow each other down. `Stopped` follows the last arrival at once.
    """

    def __init__(
        self,
        costs: EdgePlan,
        arrivals: Sequence[Frame],
        *,
        ledger: Ledger | None = None,
        failure_of: Callable[[Load | Infer], str | None] = never_fails,
        replans: Sequence[Replanned] = (),
    ) -> None:
        """`costs` may differ from the scheduler's plan, to see what wrong predictions do. The budget is the ledger's,
        by default that of `costs`; `failure_of` names why an action fails, or None; `replans` come at their times."""
        plans = [*(event.plan for event in replans), costs]
        self._load_ms = {weight: took_ms for plan in plans for weight, took_ms in plan.load_ms.items()}
        self._queries = {(query.name, query.release): query for plan in plans for query in plan.queries}
        self._ledger = ledger or Ledger(costs.budget_bytes)
        self._failure_of = failure_of
        self._now_ms = 0.0
        self._load_lane_free_ms = 0.0
        self._compute_lane_free_ms = 0.0
        self._arrived: set[str] = set()
        # How loads under way will end.
        self._coming: dict[str, Done] = {}
        self._in_use: Counter[str] = Counter()
        # What is known from the start, last first: of what happens at once, it happens before what comes of actions.
        self._given: list[Event] = [
            *(Arrived(frame, frame.arrived_ms) for frame in arrivals),
            *replans,
            Stopped(max((frame.arrived_ms for frame in arrivals), default=0.0)),
        ]
        self._given.sort(key=lambda event: event.now_ms)
        self._given.reverse()
        # Time, then order of insertion.
        self._events: list[tuple[float, int, Done]] = []
        self._pushed = 0

    @property
    def budget_bytes(self) -> int:
        """See Device."""
        return self._ledger.budget_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that was ever held."""
        return self._ledger.peak_bytes

    def now_ms(self) -> float:
        """See Device: the time of the last event."""
        return self._now_ms

    def start(self, action: Action) -> None:
        """See Device."""
        if isinstance(action, Load):
            self._start_load(action)
        elif isinstance(action, Infer):
            self._start_infer(action)
        else:
            self._evict(action)

    def next_event(self) -> Event | None:
        """See Device. Moves the clock on."""
        if self._given and (not self._events or self._given[-1].now_ms <= self._events[0][0]):
            given = self._given.pop()
            self._now_ms = given.now_ms
            return given
        if not self._events:
            return None
        self._now_ms, _, done = heapq.heappop(self._events)
        self._end(done)
        return done

    def _start_load(self, load: Load) -> None:
        self._ledger.reserve(load.weight, load.bytes)
        took_ms = self._load_ms[load.weight]
        self._load_lane_free_ms = max(self._load_lane_free_ms, self._now_ms) + took_ms
        self._coming[load.weight] = Done(load, self._load_lane_free_ms, took_ms, self._failure_of(load))
        self._push(self._coming[load.weight])

    def _start_infer(self, infer: Infer) -> None:
        query = self._queries[infer.query, infer.release]
        if missing := [each for each in query.weights if each not in self._arrived and each not in self._coming]:
            raise ValueError(f"query {infer.query!r} cannot run: weights {missing} are neither there nor on their way")
        self._ledger.reserve_workspace(infer.workspace_bytes)
        self._in_use.update(query.weights)
        begun_ms = max(self._compute_lane_free_ms, self._now_ms)
        ended_ms, failure = self._computed(query, query.run_ms[len(infer.frames)], begun_ms)
        self._compute_lane_free_ms = ended_ms
        self._push(Done(infer, ended_ms, ended_ms - begun_ms, failure or self._failure_of(infer)))

    def _computed(self, query: PlannedQuery, run_ms: float, begun_ms: float) -> tuple[float, str | None]:
        """When an inference ends that waits for weights on their way as it needs them, and what failed to arrive."""
        ended_ms = begun_ms + run_ms
        for weight in query.weights:
            arrival = self._coming.get(weight)
            if arrival is not None and arrival.failure is not None:
                return max(begun_ms, arrival.now_ms), f"weights {weight!r} did not arrive: {arrival.failure}"
            if arrival is not None:
                ended_ms = max(ended_ms, arrival.now_ms + (1 - query.needed_after.get(weight, 0.0)) * run_ms)
        return ended_ms, None

    def _evict(self, evict: Evict) -> None:
        if evict.weight not in self._arrived:
            raise ValueError(f"weight {evict.weight!r} has not fully arrived; evict only what is resident")
        if self._in_use[evict.weight]:
            raise ValueError(f"weight {evict.weight!r} is in use; evict it once its inference has ended")
        self._ledger.release(evict.weight)
        self._arrived.remove(evict.weight)

    def _end(self, done: Done) -> None:
        if isinstance(done.action, Infer):
            self._in_use.subtract(self._queries[done.action.query, done.action.release].weights)
            self._ledger.release_workspace(done.action.workspace_bytes)
            return
        del self._coming[done.action.weight]
        if done.failure is None:
            self._arrived.add(done.action.weight)
        else:
            self._ledger.release(done.action.weight)

    def _push(self, done: Done) -> None:
        heapq.heappush(self._events, (done.now_ms, self._pushed, done))
        self._pushed += 1

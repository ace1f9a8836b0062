"""The simulated device: the same protocol as the real one on a virtual clock. No weights, no pixels, no waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from gemel_ray.edge.jobs import Job, Lanes
from gemel_ray.edge.ledger import Ledger
from gemel_ray.spec.actions import Action, Arrived, Done, Event, Evict, Frame, Infer, Load, Replanned, Stopped
from gemel_ray.spec.plan import EdgePlan, PlannedQuery


def never_fails(action: Load | Infer) -> str | None:
    """Every action succeeds."""
    return None


class SimulatedDevice:
    """Implements edge.device.Device. Every action takes exactly the time that `costs` gives it, longer while the other
    lane works too where `costs` says so. `Stopped` follows the last arrival at once.
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
        self._lanes = Lanes(costs.contention)
        self._arrived: set[str] = set()
        self._in_use: Counter[str] = Counter()
        # What is known from the start, last first: of what happens at once, it happens before what comes of actions.
        self._given: list[Event] = [
            *(Arrived(frame, frame.arrived_ms) for frame in arrivals),
            *replans,
            Stopped(max((frame.arrived_ms for frame in arrivals), default=0.0)),
        ]
        self._given.sort(key=lambda event: event.now_ms)
        self._given.reverse()

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
        ending = self._lanes.next_to_end()
        if self._given and (ending is None or self._given[-1].now_ms <= ending.end_ms):
            given = self._given.pop()
            self._now_ms = given.now_ms
            return given
        if ending is None:
            return None
        self._now_ms = ending.end_ms
        self._lanes.end(ending)
        done = Done(ending.action, ending.end_ms, ending.took_ms, ending.failure)
        self._end(done)
        return done

    def _start_load(self, load: Load) -> None:
        self._ledger.reserve(load.weight, load.bytes)
        self._lanes.start_load(Job(load, self._load_ms[load.weight], self._failure_of(load)), self._now_ms)

    def _start_infer(self, infer: Infer) -> None:
        query = self._queries[infer.query, infer.release]
        if missing := [each for each in query.weights if each not in self._arrived and each not in self._lanes.coming]:
            raise ValueError(f"query {infer.query!r} cannot run: weights {missing} are neither there nor on their way")
        self._ledger.reserve_workspace(infer.workspace_bytes)
        self._in_use.update(query.weights)
        job = Job(infer, query.run_ms[len(infer.frames)], self._failure_of(infer), self._waits(query))
        self._lanes.start_infer(job, self._now_ms)

    def _waits(self, query: PlannedQuery) -> dict[str, float]:
        """The weights on their way that a query waits for, and after which part of its run it needs each."""
        coming = self._lanes.coming
        if not coming:
            return {}
        return {weight: query.needed_after.get(weight, 0.0) for weight in query.weights if weight in coming}

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
        if done.failure is None:
            self._arrived.add(done.action.weight)
        else:
            self._ledger.release(done.action.weight)

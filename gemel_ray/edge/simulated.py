"""The simulated device: the same protocol as the real one on a virtual clock. No weights, no pixels, no waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from gemel_ray.edge.jobs import Job, Lanes
from gemel_ray.edge.ledger import Ledger
from gemel_ray.spec.actions import (
    Action,
    Arrived,
    Done,
    Event,
    Evict,
    Frame,
    Infer,
    Load,
    Replanned,
    Stopped,
    Withdrawn,
)
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.plan import EdgePlan, PlannedQuery

# Where loads take no time at all, a scheduler may try one that fails for ever: the deadlines that would end it never
# come. Between two other events each weight is loaded a few times at most.
_MOST_LOADS_AT_ONCE = 1000


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
        withdrawals: Sequence[Withdrawn] = (),
    ) -> None:
        """`costs` may differ from the scheduler's plan, to see what wrong predictions do. The budget is the ledger's,
        by default that of `costs`; `failure_of` names why an action fails, or None; `replans` and `withdrawals` come at
        their times."""
        plans = [*(event.plan for event in replans), costs]
        self._load_ms = {weight: took_ms for plan in plans for weight, took_ms in plan.load_ms.items()}
        self._queries = {(query.name, query.release): query for plan in plans for query in plan.queries}
        self._ledger = ledger or Ledger(costs.budget_bytes)
        self._failure_of = failure_of
        self._now_ms = 0.0
        # Loads that have ended since anything else has happened, or time has passed.
        self._loads_at_once = 0
        self._lanes = Lanes(costs.contention)
        self._arrived: set[str] = set()
        self._in_use: Counter[str] = Counter()
        # What is known from the start, last first: of what happens at once, it happens before what comes of actions.
        self._given: list[Event] = [
            *(Arrived(frame, frame.arrived_ms) for frame in arrivals),
            *replans,
            *withdrawals,
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
        """See Device. Moves the clock on. ServingError where nothing but loads of no time would ever come."""
        ending = self._lanes.next_to_end()
        if self._given and (ending is None or self._given[-1].now_ms <= ending.end_ms):
            given = self._given.pop()
            self._now_ms, self._loads_at_once = given.now_ms, 0
            return given
        if ending is None:
            return None
        self._check_moves(ending)
        self._now_ms = ending.end_ms
        self._lanes.end(ending)
        done = Done(ending.action, ending.end_ms, ending.took_ms, ending.failure)
        self._end(done)
        return done

    def _check_moves(self, ending: Job) -> None:
        is_at_once = isinstance(ending.action, Load) and ending.end_ms == self._now_ms
        self._loads_at_once = self._loads_at_once + 1 if is_at_once else 0
        if self._loads_at_once > _MOST_LOADS_AT_ONCE * max(len(self._load_ms), 1):
            raise ServingError(
                f"the simulation stands still at {self._now_ms} ms: {self._loads_at_once} loads of 0 ms have ended "
                f"and nothing else, the last of them {ending.action}; let loads take time, or none of them fail"
            )

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

"""What a simulated device works at: two lanes, each in order, which may slow each other down."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gemel_ray.spec.actions import Infer, Load
from gemel_ray.spec.plan import Contention


@dataclass(slots=True, eq=False)
class Job:
    """A load or an inference, and when it ends as things stand; times are set when its turn in the lane comes."""

    action: Load | Infer
    work_ms: float
    # Why it is to fail; None where it succeeds.
    failure: str | None
    # Of an inference: weights that are still on their way, and after which part of the run each is needed.
    waits: dict[str, float] = field(default_factory=dict)
    number: int = 0
    began_ms: float = 0.0
    end_ms: float = 0.0
    # When it would end if nothing had to be waited for.
    worked_ms: float = 0.0
    # By how much it is slowed down now, and whether that has ever changed.
    slowdown: float = 1.0

    def rest_ms(self, needed_after: float) -> float:
        """Of an inference: what is left to compute when a weight has come that is needed after that part."""
        return (1 - needed_after) * self.work_ms * self.slowdown

    @property
    def took_ms(self) -> float:
        """From its turn in the lane to its end."""
        is_plain_load = isinstance(self.action, Load) and self.end_ms == self.began_ms + self.work_ms
        return self.work_ms if is_plain_load else self.end_ms - self.began_ms


class Lanes:
    """Loads in one lane, inferences in the other."""

    def __init__(self, contention: Contention) -> None:
        self._contention = contention
        self._loads: deque[Job] = deque()
        self._infers: deque[Job] = deque()
        self._numbers = 0
        # Loads under way by weight.
        self.coming: dict[str, Job] = {}

    def start_load(self, job: Job, now_ms: float) -> None:
        """Queue a load."""
        assert isinstance(job.action, Load), "an inference has a lane of its own"
        self.coming[job.action.weight] = job
        self._queue(self._loads, job, now_ms)

    def start_infer(self, job: Job, now_ms: float) -> None:
        """Queue an inference."""
        self._queue(self._infers, job, now_ms)

    def next_to_end(self) -> Job | None:
        """Of what is under way, as things stand; of two at once, the one started first."""
        if not self._loads or not self._infers:
            return self._loads[0] if self._loads else self._infers[0] if self._infers else None
        load, infer = self._loads[0], self._infers[0]
        return load if (load.end_ms, load.number) < (infer.end_ms, infer.number) else infer

    def end(self, job: Job) -> None:
        """Take off what `next_to_end` gave, and let the next in its lane begin."""
        lane = self._loads if isinstance(job.action, Load) else self._infers
        lane.popleft()
        if isinstance(job.action, Load):
            self._land(job)
        if lane:
            self._begin(lane[0], job.end_ms)
        self._settle(job.end_ms)

    def _land(self, load: Job) -> None:
        """What waits for a weight is told how its load has ended."""
        assert isinstance(load.action, Load), "only loads land"
        del self.coming[load.action.weight]
        for infer in self._infers:
            needed_after = infer.waits.pop(load.action.weight, None)
            if needed_after is None:
                continue
            if load.failure is not None:
                infer.failure, infer.work_ms = _lost(load), 0.0
                infer.waits.clear()
                infer.worked_ms = infer.end_ms = max(infer.began_ms, load.end_ms)
            else:
                infer.worked_ms = max(infer.worked_ms, load.end_ms + infer.rest_ms(needed_after))

    def _queue(self, lane: deque[Job], job: Job, now_ms: float) -> None:
        self._numbers += 1
        job.number = self._numbers
        lane.append(job)
        if len(lane) == 1:
            self._begin(job, now_ms)
        self._settle(now_ms)

    def _begin(self, job: Job, now_ms: float) -> None:
        job.began_ms = now_ms
        job.worked_ms = job.end_ms = now_ms + job.work_ms

    def _settle(self, now_ms: float) -> None:
        """Work out anew when the first of each lane ends, now that something has begun or ended."""
        if self._loads and self._infers:
            self._slow(self._loads[0], now_ms, self._contention.load_slowdown)
            self._slow(self._infers[0], now_ms, self._contention.run_slowdown)
        elif self._loads or self._infers:
            self._slow((self._loads or self._infers)[0], now_ms, 1.0)
        if self._loads:
            self._loads[0].end_ms = self._loads[0].worked_ms
        if self._infers and self._infers[0].waits:
            self._wait(self._infers[0])

    def _slow(self, job: Job, now_ms: float, slowdown: float) -> None:
        """Stretch or shorten what is left of a job. Nothing is touched while nothing changes, so that without
        contention times are sums of the costs."""
        if slowdown != job.slowdown:
            job.worked_ms = now_ms + (job.worked_ms - now_ms) * slowdown / job.slowdown
            job.slowdown = slowdown
            job.end_ms = job.worked_ms

    def _wait(self, infer: Job) -> None:
        """An inference ends no sooner than the weights it waits for let it."""
        infer.end_ms, arrival_ms = infer.worked_ms, self._loads[0].end_ms
        for place, load in enumerate(self._loads):
            if place:
                arrival_ms += load.work_ms * self._contention.load_slowdown
            assert isinstance(load.action, Load), "the lane of loads"
            needed_after = infer.waits.get(load.action.weight)
            if needed_after is not None and load.failure is not None:
                infer.end_ms = max(infer.began_ms, arrival_ms)
                return
            if needed_after is not None:
                infer.end_ms = max(infer.end_ms, arrival_ms + infer.rest_ms(needed_after))


def _lost(load: Job) -> str:
    assert isinstance(load.action, Load), "only loads land"
    return f"weights {load.action.weight!r} did not arrive: {load.failure}"

"""The narrow language between the scheduler and a device: actions out, events in."""

from __future__ import annotations

from dataclasses import dataclass

from gemel_ray.spec.plan import EdgePlan


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that has arrived for a query. The pixels stay with whoever brought it; `frame` names them.

    A frame with `droppable` gives way to a newer one of the same query and to its own deadline; one without is
    answered however late.
    """

    query: str
    frame: int
    arrived_ms: float
    deadline_ms: float
    droppable: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """Bring one weight set onto the device."""

    weight: str
    bytes: int
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class Evict:
    """Free one weight set's bytes. Takes effect at once."""

    weight: str


@dataclass(frozen=True, slots=True)
class Infer:
    """Run one query's model on a batch of frames; all its weights are resident by then."""

    query: str
    frames: tuple[int, ...]
    workspace_bytes: int
    predicted_ms: float
    # As in spec.plan.PlannedQuery: which of the query's models, while one takes another's place.
    release: int = 0


Action = Load | Evict | Infer


@dataclass(frozen=True, slots=True)
class Arrived:
    """A frame has arrived."""

    frame: Frame
    now_ms: float


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Whoever brought a frame waits for its answer no longer; what computes already is computed to its end."""

    frame: Frame
    now_ms: float


@dataclass(frozen=True, slots=True)
class Done:
    """A load or an inference has ended; `took_ms` is measured, to stand beside the prediction."""

    action: Load | Infer
    now_ms: float
    took_ms: float
    # Why it failed; None when it succeeded.
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """No more frames will arrive; what is pending may still be answered."""

    now_ms: float


@dataclass(frozen=True, slots=True)
class Replanned:
    """Another plan, in the same budget, is to be followed from the next inference on."""

    plan: EdgePlan
    now_ms: float


Event = Arrived | Withdrawn | Done | Stopped | Replanned


@dataclass(frozen=True, slots=True)
class Answered:
    """A frame was answered by a forward pass of its own, of the model of that release."""

    frame: Frame
    now_ms: float
    release: int = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A frame gets no forward pass of its own: the last answer stands in for it, stale, unless nobody waits for one."""

    frame: Frame
    now_ms: float
    # 'newer frame', 'too late', 'withdrawn' or 'failed: ...'
    reason: str


Verdict = Answered | Dropped

"""A trace: everything that a scheduler and a device said to each other."""

from __future__ import annotations

from gemel_ray.edge.device import Device
from gemel_ray.spec.actions import Action, Arrived, Done, Event, Infer, Load, Verdict


class Trace:
    """A device that wraps another one and writes down what passes: `run(scheduler, trace, trace.hear)`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        # What was started, with the time, in order.
        self.started: list[tuple[float, Action]] = []
        self.events: list[Event] = []
        self.verdicts: list[Verdict] = []
        # The most bytes that weights and workspace took together: an account independent of any ledger.
        self.peak_bytes = 0
        self._held_bytes = 0
        self._weight_bytes: dict[str, int] = {}

    @property
    def budget_bytes(self) -> int:
        """See Device."""
        return self._device.budget_bytes

    @property
    def arrivals(self) -> list[Arrived]:
        """Frames, in the order the scheduler heard of them."""
        return [event for event in self.events if isinstance(event, Arrived)]

    @property
    def done(self) -> list[Done]:
        """Loads and inferences that have ended, well or not."""
        return [event for event in self.events if isinstance(event, Done)]

    def now_ms(self) -> float:
        """See Device."""
        return self._device.now_ms()

    def start(self, action: Action) -> None:
        """See Device. What the device refuses is not written down."""
        now_ms = self._device.now_ms()
        self._device.start(action)
        self.started.append((now_ms, action))
        if isinstance(action, Load):
            self._weight_bytes[action.weight] = action.bytes
            self._held_bytes += action.bytes
        elif isinstance(action, Infer):
            self._held_bytes += action.workspace_bytes
        else:
            self._held_bytes -= self._weight_bytes.pop(action.weight)
        if self._held_bytes > self.peak_bytes:
            self.peak_bytes = self._held_bytes

    def next_event(self) -> Event | None:
        """See Device."""
        event = self._device.next_event()
        if event is not None:
            self.events.append(event)
        if isinstance(event, Done):
            self._end(event)
        return event

    def _end(self, done: Done) -> None:
        if isinstance(done.action, Infer):
            self._held_bytes -= done.action.workspace_bytes
        elif done.failure is not None:
            self._held_bytes -= self._weight_bytes.pop(done.action.weight)

    def hear(self, verdict: Verdict) -> None:
        """The callback for verdicts."""
        self.verdicts.append(verdict)

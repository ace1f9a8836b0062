"""What a scheduler may ask of a device, real or simulated."""

from __future__ import annotations

from typing import Protocol

from gemel_ray.spec.actions import Action, Event


class Device(Protocol):
    """Two lanes, each in order: one copies weights in, one computes. Holds a byte budget and never exceeds it.

    A weight's bytes count from the start of its load until its eviction, an inference's workspace while it runs.
    """

    @property
    def budget_bytes(self) -> int:
        """Bytes that resident weights and running workspace may take together."""
        ...

    def now_ms(self) -> float:
        """Time on the device's own clock; never goes back."""
        ...

    def start(self, action: Action) -> None:
        """Queue a load or an inference on its lane, or evict at once.

        Raises OverBudgetError before anything is allocated when the bytes would not fit, and ValueError on an
        action that makes no sense: loading what is resident, evicting what is absent or in use, inferring with
        weights that are neither there nor on their way. No layer computes before its weights have fully arrived; an
        inference whose weights fail to arrive fails.
        """
        ...

    def next_event(self) -> Event | None:
        """The next arrival or completion, waiting for it; None when none will ever come."""
        ...

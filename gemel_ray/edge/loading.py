"""Loads under way, in the order of the device's lane, and when they end as far as can be predicted."""

from __future__ import annotations

from collections.abc import KeysView, Sequence

from gemel_ray.spec.actions import Load


class Loading:
    """One load after the other; each takes as long as it was predicted to."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._total_ms = 0.0
        # When the first of them began.
        self._began_ms = 0.0

    @property
    def weights(self) -> KeysView[str]:
        """What is on its way, next to arrive first."""
        return self._loads.keys()

    def begin(self, loads: Sequence[Load], now_ms: float) -> None:
        """These follow what is under way."""
        if not self._loads:
            self._began_ms = now_ms
        self._loads.update((load.weight, load) for load in loads)
        self._sum()

    def end(self, weight: str, now_ms: float) -> None:
        """One has ended, and the next begins."""
        del self._loads[weight]
        self._sum()
        self._began_ms = now_ms

    def left_ms(self, now_ms: float) -> float:
        """Until all have ended; 0 where there are none."""
        if not self._loads:
            return 0.0
        return self._total_ms - self._gone_ms(next(iter(self._loads.values())), now_ms)

    def next_left_ms(self, now_ms: float) -> float:
        """Until the first of them ends; 0 where there are none."""
        head = next(iter(self._loads.values()), None)
        return head.predicted_ms - self._gone_ms(head, now_ms) if head else 0.0

    def each_left_ms(self, now_ms: float) -> dict[str, float]:
        """Until each of them ends."""
        found: dict[str, float] = {}
        last_ms = 0.0
        for weight, load in self._loads.items():
            gone_ms = 0.0 if found else self._gone_ms(load, now_ms)
            last_ms += load.predicted_ms - gone_ms
            found[weight] = last_ms
        return found

    def _gone_ms(self, head: Load, now_ms: float) -> float:
        """How long the first has been under way, as far as it counts."""
        return min(now_ms - self._began_ms, head.predicted_ms)

    def _sum(self) -> None:
        self._total_ms = sum(load.predicted_ms for load in self._loads.values())

"""When to act on a drift again: what was done once for a release is done; what could not be done is tried later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from gemel_ray.policy.backoff import wait_s

# A store that was away, a release that was pinned: it may take a moment or a night.
_FIRST_S = 10.0
_MOST_S = 600.0


@dataclass(frozen=True, slots=True)
class _Attempt:
    release: int
    failures: int
    # Never, where it was done.
    due_s: float


class DriftAttempts:
    """Of each query, what came of acting on its drift in the release served last. For one thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._last: dict[str, _Attempt] = {}

    def is_due(self, query: str, release: int) -> bool:
        """Whether it is time to act: at once in another release."""
        last = self._last.get(query)
        return last is None or last.release != release or self._now_s() >= last.due_s

    def note(self, query: str, release: int, *, is_done: bool) -> None:
        """What came of acting now."""
        last = self._last.get(query)
        failures = last.failures + 1 if last is not None and last.release == release else 0
        later_s = self._now_s() + wait_s(failures, every_s=_FIRST_S, most_s=_MOST_S, chance=0.5)
        self._last[query] = _Attempt(release, failures, math.inf if is_done else later_s)

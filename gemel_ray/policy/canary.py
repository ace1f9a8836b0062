"""Whether frames fail because of a new release: more often than they did under the one before, query by query."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# What may fail of a query's frames without being laid to a release that failed none before: a load that the disk gave
# late, a device that another process held.
_ODD_FRACTION = 0.02
# How far, in standard deviations of a rare event, failures may exceed those of before by chance.
_DEVIATIONS = 3.0


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """A query's frames, and those of them whose inference or weights failed."""

    arrived: int = 0
    failed: int = 0

    def since(self, before: FrameCounts) -> FrameCounts:
        """What was counted after `before`; all of it by an engine that has begun to count anew."""
        if before.arrived > self.arrived or before.failed > self.failed:
            return self
        return FrameCounts(self.arrived - before.arrived, self.failed - before.failed)


def failed_more(now: Mapping[str, FrameCounts], before: Mapping[str, FrameCounts]) -> int:
    """Frames that failed of queries that fail clearly more often than before; of all others none count."""
    return sum(found.failed for name, found in now.items() if _is_worse(found, before.get(name, FrameCounts())))


def _is_worse(now: FrameCounts, before: FrameCounts) -> bool:
    usual = now.arrived * before.failed / before.arrived if before.arrived else 0.0
    allowed = usual + _DEVIATIONS * math.sqrt(usual) + _ODD_FRACTION * now.arrived
    # A single frame may be odd, but not where nothing else is known.
    return now.failed > max(allowed, 1.0 if now.arrived > now.failed else 0.0)

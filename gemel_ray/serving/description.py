"""What the service tells of itself: the queries it answers, and how it is doing."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from gemel_ray.spec.errors import nearest


class QueryCard(BaseModel):
    """What a caller must know of one query."""

    model_config = ConfigDict(frozen=True)

    name: str
    feed: str
    builder: str
    task: Literal["classification", "detection"]
    classes: tuple[str, ...]
    slo_ms: float
    accuracy_target: float
    # Agreement with the original on the gate split; None where the release does not say.
    agreement: float | None = None
    # The lower confidence bound of that.
    lower_bound: float | None = None
    # Bytes of the query's weights if none were shared, neither with other models nor within its own.
    original_bytes: int = 0
    # The release whose model answers it; None where the whole service is at one.
    release: int | None = None


class Description(BaseModel):
    """What is being served."""

    model_config = ConfigDict(frozen=True)

    workload: str
    release: int
    # Bytes of all originals, and of the release.
    bytes_before: int
    bytes_after: int
    queries: dict[str, QueryCard]

    def release_of(self, query: str) -> int:
        """The release whose model answers a query."""
        return self.queries[query].release or self.release

    def no_such(self, query: str) -> str:
        """What to tell a caller who asked for a query that is not served."""
        # The release may have it: a box, or a fleet, need not serve all.
        return f"no query {query!r} is served here, of release {self.release}; {nearest(query, self.queries)}"


def reclassified(old: Description | None, new: Description | None) -> list[str]:
    """Queries that have other classes now than before."""
    before, now = (found.queries if found else {} for found in (old, new))
    return [name for name in before.keys() & now.keys() if before[name].classes != now[name].classes]

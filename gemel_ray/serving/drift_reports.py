"""What the drift watch tells: each query's agreement so far, and what was done about those that drifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class DriftReply(BaseModel):
    """One watched query since its model was last replaced."""

    model_config = ConfigDict(frozen=True)

    verdict: Literal["holding", "drifted"]
    # Of the last sampled frames with the original; None before the first block of them.
    agreement: float | None
    # Agreement below this is drift.
    floor: float
    samples: int
    # How much there is of what it takes to find drift: 1 is drift.
    evidence_fraction: float


@dataclass(frozen=True, slots=True)
class Drift:
    """A query that has drifted and is served all the same, by this release."""

    query: str
    reply: DriftReply
    release: int
    # A name for its weights, whichever releases have them.
    model: str


class DriftEvent(BaseModel):
    """A query has drifted. One for each release that serves the weights that did."""

    model_config = ConfigDict(frozen=True)

    # UTC, ISO 8601.
    at: str
    query: str
    # The release whose model drifted, and a name for its weights; none in events of versions that gave no such name.
    release: int
    model: str = ""
    agreement: float | None
    floor: float
    samples: int
    # The release in which the query runs its original again; None as long as it could not be reverted.
    reverted_in: int | None = None
    # How it was reverted, or why it was not when that was last tried.
    outcome: str = ""
    # The store's release that a re-merge goes on from.
    from_release: int | None = None
    # Frames and workload for a re-merge, and the command line that does it.
    folder: str | None = None
    command: str | None = None
    # The Ray job that does it, where one was submitted.
    job: str | None = None


class DriftReport(BaseModel):
    """All of it."""

    model_config = ConfigDict(frozen=True)

    queries: dict[str, DriftReply] = {}
    events: tuple[DriftEvent, ...] = ()

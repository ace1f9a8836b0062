"""What one node is to run: the scheduler's whole knowledge of the queries, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PlannedQuery:
    """One query's turn: the weight sets it needs resident and the batch it runs.

    `run_ms` and `workspace_bytes` are by batch size, for every size from 1 to `batch_size`.
    """

    name: str
    weights: tuple[str, ...]
    batch_size: int
    run_ms: Mapping[int, float]
    workspace_bytes: Mapping[int, int]
    # After which fraction of a run each weight set is first needed; 0, from the start, for those not named.
    needed_after: Mapping[str, float] = field(default_factory=dict)
    # The release whose model it is; 0 where there is only one. Answers say it.
    release: int = 0


@dataclass(frozen=True, slots=True)
class Contention:
    """How many times as long an inference takes while weights load, and a load while an inference computes."""

    run_slowdown: float = 1.0
    load_slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """Queries in round-robin order, the bytes and load time of each weight set, and the budget that holds them."""

    queries: tuple[PlannedQuery, ...]
    weight_bytes: Mapping[str, int]
    load_ms: Mapping[str, float]
    budget_bytes: int
    # Load the next turn's missing weights while this turn computes.
    overlap: bool = True
    # What the times above leave out.
    contention: Contention = Contention()
    # Which weights go first, by its name in policy.eviction.
    eviction: str = "furthest_next_use"
    # While a turn's weights load, others that are ready may compute out of turn. Not without overlap.
    work_conserving: bool = True
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(query.name for query in self.queries))

"""How a service is doing, in JSON: every node's memory and every query's counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from gemel_ray.engine.status import EngineStatus, QueryStatus
from gemel_ray.serving.description import Description, QueryCard
from gemel_ray.serving.drift_reports import DriftEvent, DriftReply
from gemel_ray.serving.events import ServiceEvent
from gemel_ray.serving.replies import AnswerReply, answer_reply
from gemel_ray.serving.thumbnails import ThumbnailReply


class NodeMemory(BaseModel):
    """Bytes on one device; `peak_bytes` is the most that weights and workspace ever took together."""

    budget_bytes: int
    # Of the resident weights, those that several queries of the node use are `shared_bytes`.
    resident_bytes: int
    shared_bytes: int
    workspace_bytes: int
    peak_bytes: int


class NodeReply(BaseModel):
    """One node. With a `problem` it cannot be reached, and nothing else is known of it."""

    name: str
    problem: str | None = None
    device: str | None = None
    release: int | None = None
    # Why a box on its own does not serve what its store's HEAD names; None when it does.
    release_problem: str | None = None
    memory: NodeMemory | None = None
    # What the weights of its queries would take unmerged.
    original_bytes: int = 0
    loads: int = 0
    loaded_bytes: int = 0
    # How often the engine went over to a better plan.
    replans: int = 0
    busy_fraction: float = 0.0


class QueryReply(BaseModel):
    """One query since its engine started; counts are None while its node cannot be reached."""

    name: str
    node: str
    builder: str
    slo_ms: float
    accuracy_target: float
    # Agreement with the original on the gate split, and its lower confidence bound.
    agreement: float | None
    lower_bound: float | None
    # The release whose model answers it.
    release: int
    arrived: int | None = None
    answered: int | None = None
    stale: int | None = None
    # Frames whose callers gave up before their turn.
    withdrawn: int | None = None
    # Of what passed through this process: frames answered after their SLO, and those not processed, by reason.
    late: int | None = None
    dropped: dict[str, int] | None = None
    p50_latency_ms: float | None = None
    p95_latency_ms: float | None = None
    weights_bytes: int | None = None
    shared_bytes: int | None = None
    last_answer: AnswerReply | None = None
    # Whether the last frame that came through this process had a forward pass of its own.
    is_fresh: bool | None = None
    last_reason: str | None = None
    # The frame that may be looked at; None where none is kept.
    thumbnail: ThumbnailReply | None = None
    # None where nobody watches, or the query runs its original.
    drift: DriftReply | None = None


class ControlReply(BaseModel):
    """What the controller is at. With a `problem` it cannot be reached; engines go on as they are meanwhile."""

    problem: str | None = None
    # The release that is to be served everywhere.
    target: int | None = None
    # The release that the store has pinned.
    pinned: int | None = None
    # What it does or waits for; None when all is as it should be.
    doing: str | None = None
    # Why the target is not rolled out any further.
    blocked: str | None = None
    # Nodes whose machine has left the cluster.
    gone: tuple[str, ...] = ()
    # Queries that no node can take, and why.
    unplaced: dict[str, str] = {}
    is_settled: bool = False


class ServiceStatus(BaseModel):
    """Answer to GET /v1/status. What is served is unknown as long as no engine has ever been reached."""

    workload: str | None
    release: int | None
    bytes_before: int | None
    bytes_after: int | None
    # The release that stays whatever is published; None where none is pinned, or nobody follows the store.
    pinned: int | None = None
    nodes: tuple[NodeReply, ...]
    queries: tuple[QueryReply, ...]
    # Queries that drifted, oldest first.
    drift_events: tuple[DriftEvent, ...] = ()
    # Of a service with a controller alone.
    control: ControlReply | None = None
    # What has happened of late, oldest first.
    events: tuple[ServiceEvent, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether every node answers."""
        return self.release is not None and all(node.problem is None for node in self.nodes)


def service_status(
    description: Description | None, engines: Mapping[str, EngineStatus | str | None], homes: Mapping[str, str]
) -> ServiceStatus:
    """Put together what each node told of itself, or why it did not, or that it is idle (None).

    `homes` says which node answers a query.
    """
    cards = [card for card in description.queries.values() if card.name in homes] if description else []
    return ServiceStatus(
        workload=description.workload if description else None,
        release=description.release if description else None,
        bytes_before=description.bytes_before if description else None,
        bytes_after=description.bytes_after if description else None,
        nodes=tuple(
            _node(name, engine, [card for card in cards if homes[card.name] == name])
            for name, engine in engines.items()
        ),
        queries=tuple(
            _query(card, homes[card.name], engines[homes[card.name]], description.release_of(card.name))
            for card in cards
            if description
        ),
    )


def _node(name: str, engine: EngineStatus | str | None, cards: Sequence[QueryCard]) -> NodeReply:
    if not isinstance(engine, EngineStatus):
        return NodeReply(name=name, problem=engine)
    return NodeReply(
        name=name,
        original_bytes=sum(card.original_bytes for card in cards),
        device=engine.device,
        release=engine.release,
        memory=NodeMemory(
            budget_bytes=engine.budget_bytes,
            resident_bytes=engine.resident_bytes,
            shared_bytes=engine.shared_bytes,
            workspace_bytes=engine.workspace_bytes,
            peak_bytes=engine.peak_bytes,
        ),
        loads=engine.loads,
        loaded_bytes=engine.loaded_bytes,
        replans=engine.replans,
        busy_fraction=engine.busy_fraction,
    )


def _query(card: QueryCard, node: str, engine: EngineStatus | str | None, release: int) -> QueryReply:
    known = QueryReply(
        name=card.name,
        node=node,
        builder=card.builder,
        slo_ms=card.slo_ms,
        accuracy_target=card.accuracy_target,
        agreement=card.agreement,
        lower_bound=card.lower_bound,
        release=release,
    )
    found = engine.queries.get(card.name) if isinstance(engine, EngineStatus) else None
    return known if found is None else known.model_copy(update=_counts(found, card))


def _counts(found: QueryStatus, card: QueryCard) -> dict[str, object]:
    return {
        "arrived": found.arrived,
        "answered": found.answered,
        "stale": found.stale,
        "withdrawn": found.withdrawn,
        "p50_latency_ms": found.p50_latency_ms,
        "p95_latency_ms": found.p95_latency_ms,
        "weights_bytes": found.weights_bytes,
        "shared_bytes": found.shared_bytes,
        "last_answer": answer_reply(found.last_answer, card),
        "last_reason": found.last_reason,
    }

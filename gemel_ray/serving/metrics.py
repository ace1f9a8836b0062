"""Prometheus text of a service: what its nodes tell of themselves, and what was answered through this process.

Counters of nodes begin anew with their engine, counters of answers with the ingress. Times are in seconds and
shares are ratios from 0 to 1, as Prometheus wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gemel_ray.serving.status import NodeReply, QueryReply, ServiceStatus
from gemel_ray.spec.answers import FrameAnswer

CONTENT_TYPE = CONTENT_TYPE_LATEST

# From one run of a small model to the seconds of a node that swaps too much.
_LATENCIES_S = (0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

# Why a frame is not processed: labels must not hold free text.
_REASONS = ("late", "replaced", "failed")

Number = float | int | None
Source = TypeVar("Source")
_NODE_GAUGES: dict[str, tuple[str, Callable[[NodeReply], Number]]] = {
    "gemel_node_budget_bytes": ("Bytes the node may hold", lambda n: n.memory.budget_bytes if n.memory else None),
    "gemel_node_resident_bytes": ("Bytes of resident weights", lambda n: n.memory.resident_bytes if n.memory else None),
    "gemel_node_shared_bytes": (
        "Of the resident weights, those that several queries use",
        lambda n: n.memory.shared_bytes if n.memory else None,
    ),
    "gemel_node_original_bytes": ("What its queries' weights would take unmerged", lambda n: n.original_bytes),
    "gemel_node_workspace_bytes": (
        "Bytes of running inferences",
        lambda n: n.memory.workspace_bytes if n.memory else None,
    ),
    "gemel_node_peak_bytes": ("Most bytes ever held", lambda n: n.memory.peak_bytes if n.memory else None),
    "gemel_node_busy_ratio": ("Share of the last ten seconds spent computing", lambda n: n.busy_fraction),
    "gemel_node_release_number": ("Release the node serves", lambda n: n.release),
}
_NODE_COUNTERS: dict[str, tuple[str, Callable[[NodeReply], Number]]] = {
    "gemel_node_loads": ("Weight sets loaded", lambda n: n.loads),
    "gemel_node_loaded_bytes": ("Bytes of weights loaded", lambda n: n.loaded_bytes),
    "gemel_node_replans": ("Times that a better plan was gone over to", lambda n: n.replans),
}
_QUERY_GAUGES: dict[str, tuple[str, Callable[[QueryReply], Number]]] = {
    "gemel_query_agreement_ratio": ("Agreement with the original on the gate split", lambda q: q.agreement),
    "gemel_query_agreement_lower_bound_ratio": ("Its lower confidence bound", lambda q: q.lower_bound),
    "gemel_query_accuracy_target_ratio": ("Agreement that is asked for", lambda q: q.accuracy_target),
    "gemel_query_slo_seconds": ("Arrival to answer, at most", lambda q: q.slo_ms / 1e3),
    "gemel_query_sampled_agreement_ratio": (
        "Agreement with the original on frames sampled while serving",
        lambda q: q.drift.agreement if q.drift else None,
    ),
    "gemel_query_drift_floor_ratio": (
        "Sampled agreement below this is drift",
        lambda q: q.drift.floor if q.drift else None,
    ),
    "gemel_query_drift_evidence_ratio": (
        "Evidence of drift; it is found at 1",
        lambda q: q.drift.evidence_fraction if q.drift else None,
    ),
    "gemel_query_drifted": (
        "1 for a query that has drifted",
        lambda q: float(q.drift.verdict == "drifted") if q.drift else None,
    ),
    "gemel_query_weights_bytes": ("Bytes of the query's weights", lambda q: q.weights_bytes),
    "gemel_query_shared_bytes": ("Those that another query uses too", lambda q: q.shared_bytes),
}
_QUERY_COUNTERS: dict[str, tuple[str, Callable[[QueryReply], Number]]] = {
    "gemel_frames_arrived": ("Frames that arrived", lambda q: q.arrived),
    "gemel_frames_answered": ("Frames with a forward pass of their own", lambda q: q.answered),
    "gemel_frames_sampled": (
        "Frames compared with the original's answer",
        lambda q: q.drift.samples if q.drift else None,
    ),
    "gemel_frames_stale": ("Frames that got the last answer again", lambda q: q.stale),
    "gemel_frames_withdrawn": ("Frames whose callers gave up before their turn", lambda q: q.withdrawn),
}


@dataclass(frozen=True, slots=True)
class Load(Collector):
    """What this process has to do right now; `refused` since it started."""

    in_flight: int
    refused: int
    listeners: int

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        yield GaugeMetricFamily("gemel_requests_in_flight", "Requests with frames under way", value=self.in_flight)
        yield CounterMetricFamily("gemel_requests_refused", "Requests beyond, answered with 429", value=self.refused)
        yield GaugeMetricFamily("gemel_result_listeners", "Open streams of results", value=self.listeners)


class AnswerMetrics:
    """Counts answers as they leave this process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels, registry = ["query"], self._registry
        self._late = Counter(
            "gemel_frames_late_total", "Frames answered after their SLO, of requests here", labels, registry=registry
        )
        self._dropped = Counter(
            "gemel_frames_dropped_total", "Frames not processed", [*labels, "reason"], registry=registry
        )
        self._latency = Histogram(
            "gemel_answer_latency_seconds", "Arrival to answer", labels, buckets=_LATENCIES_S, registry=registry
        )

    def expect(self, queries: Iterable[str]) -> None:
        """Show queries from the start: a counter that appears with its first event hides that event from rate()."""
        for query in queries:
            self._late.labels(query)
            self._latency.labels(query)
            for reason in _REASONS:
                self._dropped.labels(query, reason)

    def count(self, found: FrameAnswer, slo_ms: float) -> None:
        """Take in one frame's answer, asked for within `slo_ms`."""
        if not found.fresh:
            self._dropped.labels(found.query, _kind_of(found.reason or "")).inc()
            return
        self._latency.labels(found.query).observe(found.latency_ms / 1e3)
        if found.latency_ms > slo_ms:
            self._late.labels(found.query).inc()

    def late(self, query: str) -> int:
        """Frames of a query that were answered after their SLO."""
        return self._value("gemel_frames_late_total", query=query)

    def dropped(self, query: str) -> dict[str, int]:
        """Frames of a query that were not processed, by reason."""
        return {reason: self._value("gemel_frames_dropped_total", query=query, reason=reason) for reason in _REASONS}

    def _value(self, name: str, **labels: str) -> int:
        return int(self._registry.get_sample_value(name, labels) or 0)

    def text(self, status: ServiceStatus, load: Load) -> bytes:
        """Everything, in the text format; CONTENT_TYPE is its type."""
        return generate_latest(self._now(status, load))

    def families(self, status: ServiceStatus, load: Load) -> list[Metric]:
        """The same as values."""
        return list(self._now(status, load).collect())

    def _now(self, status: ServiceStatus, load: Load) -> CollectorRegistry:
        self.expect(query.name for query in status.queries)
        now = CollectorRegistry()
        for collector in (_Status(status), load, _Counted(self._registry)):
            now.register(collector)
        return now


def _kind_of(reason: str) -> str:
    """A reason as one of few words: labels must not hold free text."""
    return {"too late": "late", "newer frame": "replaced"}.get(reason, "failed")


class _Counted(Collector):
    """A registry without the time at which each counter was made, which would double the number of families."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class _Status(Collector):
    """The families of one status."""

    def __init__(self, status: ServiceStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        for name, value in (("originals", status.bytes_before), ("release", status.bytes_after)):
            if value is not None:
                yield GaugeMetricFamily(f"gemel_{name}_bytes", f"Bytes of weights: {name}", value=value)
        yield from self._of_nodes()
        yield from self._of_queries()
        yield self._latency()

    def _of_nodes(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("gemel_node_up", "1 for a node that answers, 0 for one that does not", labels=["node"])
        for node in self._status.nodes:
            up.add_metric([node.name], float(node.problem is None))
        yield up
        known = [([node.name], node) for node in self._status.nodes if node.problem is None]
        yield from _families(GaugeMetricFamily, _NODE_GAUGES, ["node"], known)
        yield from _families(CounterMetricFamily, _NODE_COUNTERS, ["node"], known)

    def _of_queries(self) -> Iterator[Metric]:
        known = [([query.name, query.node], query) for query in self._status.queries]
        yield from _families(GaugeMetricFamily, _QUERY_GAUGES, ["query", "node"], known)
        yield from _families(CounterMetricFamily, _QUERY_COUNTERS, ["query", "node"], known)

    def _latency(self) -> Metric:
        # The engine tells quantiles of its last answers and no sum; the histogram of answers has one.
        family = Metric("gemel_frame_latency_seconds", "Arrival to answer, of the last 1024 answered", "summary")
        for query in self._status.queries:
            labels = {"query": query.name, "node": query.node}
            for quantile, value_ms in (("0.5", query.p50_latency_ms), ("0.95", query.p95_latency_ms)):
                if value_ms is not None:
                    family.add_sample(family.name, labels | {"quantile": quantile}, value_ms / 1e3)
            if query.answered is not None:
                family.add_sample(f"{family.name}_count", labels, query.answered)
        return family


def _families(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    told: dict[str, tuple[str, Callable[[Source], Number]]],
    labels: list[str],
    known: Iterable[tuple[list[str], Source]],
) -> Iterator[Metric]:
    """One family for each name, with a sample for each of `known` that has a value."""
    for name, (documentation, value_of) in told.items():
        made = family(name, documentation, labels=labels)
        for label_values, source in known:
            value = value_of(source)
            if value is not None:
                made.add_metric(label_values, value)
        yield made

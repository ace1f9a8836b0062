"""The numbers of /metrics among the cluster's own, so that Ray's Prometheus endpoints and dashboards have them too.

Ray puts `ray_` before each name. Distributions stay at /metrics: Ray takes single observations and no buckets.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.samples import Sample
from ray.util.metrics import Counter, Gauge


class ClusterMetrics:
    """Hands on what is told to it. Gauges vanish from Ray's endpoints unless they are told every few seconds."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        # What counters stood at, by name and labels.
        self._stood: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def tell(self, families: Iterable[Metric]) -> None:
        """Take in how everything stands now."""
        for family in families:
            for sample in family.samples:
                if family.type == "gauge":
                    self._set(family, sample)
                elif family.type == "counter":
                    self._count(family, sample)

    def _set(self, family: Metric, sample: Sample) -> None:
        if family.name not in self._gauges:
            self._gauges[family.name] = Gauge(family.name, family.documentation, tuple(sample.labels))
        self._gauges[family.name].set(sample.value, sample.labels)

    def _count(self, family: Metric, sample: Sample) -> None:
        if family.name not in self._counters:
            self._counters[family.name] = Counter(family.name, family.documentation, tuple(sample.labels))
        key = (family.name, tuple(sorted(sample.labels.items())))
        before = self._stood.get(key, 0.0)
        # An engine that was started anew counts from nothing.
        grown = sample.value - before if sample.value >= before else sample.value
        self._stood[key] = sample.value
        if grown > 0:
            self._counters[family.name].inc(grown, sample.labels)

"""A status with what is known of drift put beside each query. Needs neither Ray nor torch."""

from __future__ import annotations

from gemel_ray.serving.drift_reports import DriftReport
from gemel_ray.serving.status import ServiceStatus


def with_drift(status: ServiceStatus, report: DriftReport) -> ServiceStatus:
    """The status, told by whoever watches."""
    queries = tuple(query.model_copy(update={"drift": report.queries.get(query.name)}) for query in status.queries)
    return status.model_copy(update={"queries": queries, "drift_events": report.events})

"""Whoever asks, the answers that leave this process are counted and handed to those who listen."""

from __future__ import annotations

from collections.abc import Sequence

from gemel_ray.serving.backend import Backend
from gemel_ray.serving.description import Description
from gemel_ray.serving.metrics import AnswerMetrics
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.replies import frame_reply
from gemel_ray.serving.results import Results
from gemel_ray.serving.status import ServiceStatus
from gemel_ray.spec.answers import FrameAnswer


class ObservedBackend:
    """A backend whose answers are counted and published; everything else is the inner one's."""

    def __init__(self, inner: Backend, metrics: AnswerMetrics, results: Results) -> None:
        self._inner = inner
        self._metrics = metrics
        self._results = results

    async def describe(self) -> Description:
        """See Backend."""
        return await self._inner.describe()

    async def infer(
        self, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
    ) -> list[FrameAnswer]:
        """See Backend."""
        card = (await self._inner.describe()).queries[query]
        found = await self._inner.infer(query, images, slo_ms=slo_ms, droppable=droppable)
        for answer in found:
            self._metrics.count(answer, card.slo_ms if slo_ms is None else slo_ms)
            if self._results.is_heard(query):
                self._results.publish(frame_reply(answer, card))
        return found

    async def status(self) -> ServiceStatus:
        """See Backend."""
        return await self._inner.status()

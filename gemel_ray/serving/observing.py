"""Whoever asks, the answers that leave this process are counted and handed to those who listen."""

from __future__ import annotations

from collections.abc import Sequence

from gemel_ray.serving.backend import Backend
from gemel_ray.serving.changes import ChangeReply, Wish
from gemel_ray.serving.description import Description
from gemel_ray.serving.metrics import AnswerMetrics
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.replies import frame_reply
from gemel_ray.serving.results import Results
from gemel_ray.serving.status import QueryReply, ServiceStatus
from gemel_ray.serving.thumbnails import Thumbnails
from gemel_ray.spec.answers import FrameAnswer


class ObservedBackend:
    """A backend whose answers are counted and published; everything else is the inner one's."""

    def __init__(
        self, inner: Backend, metrics: AnswerMetrics, results: Results, thumbnails: Thumbnails | None = None
    ) -> None:
        """Without `thumbnails`, no frame is kept."""
        self._inner = inner
        self._metrics = metrics
        self._results = results
        self._thumbnails = thumbnails
        self._is_fresh: dict[str, bool] = {}

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
            self._is_fresh[query] = answer.fresh
            self._metrics.count(answer, card.slo_ms if slo_ms is None else slo_ms)
            if self._results.is_heard(query):
                self._results.publish(frame_reply(answer, card))
        if self._thumbnails is not None and found:
            self._thumbnails.offer(query, images[-1], lambda: frame_reply(found[-1], card))
        return found

    async def status(self) -> ServiceStatus:
        """See Backend. With what is known here alone."""
        status = await self._inner.status()
        if self._thumbnails is not None:
            self._thumbnails.forget_all_but([query.name for query in status.queries])
        return status.model_copy(update={"queries": tuple(map(self._told, status.queries))})

    def _told(self, query: QueryReply) -> QueryReply:
        name = query.name
        known = {
            "late": self._metrics.late(name),
            "dropped": self._metrics.dropped(name),
            "is_fresh": self._is_fresh.get(name),
            "thumbnail": self._thumbnails.told(name) if self._thumbnails else None,
        }
        return query.model_copy(update=known)

    async def change(self, wish: Wish) -> ChangeReply:
        """See Backend."""
        return await self._inner.change(wish)

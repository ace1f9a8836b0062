"""The backend over engines on Ray Serve, with stand-ins for Serve's handles: Ray need not run."""

import asyncio
import contextlib
import warnings

from tiny_release import noise

from gemel_ray.serving.description import Description, QueryCard
from gemel_ray.spec.answers import Classified, FrameAnswer
from gemel_ray.spec.errors import ServingError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gemel_ray.serving.handle_backend import HandleBackend

QUERY = "north_cars"
THREE, RENAMED = ("background", "car", "person"), ("background", "car", "rider")
CARD = QueryCard(
    name=QUERY, feed="f", builder="x", task="classification", classes=THREE, slo_ms=100, accuracy_target=0.9
)
ANSWER = Classified("person", (0.1, 0.2, 0.7))


class Node:
    """Stands where Serve's handle of an engine does."""

    def __init__(self, classes):
        self.classes, self.is_lost = classes, False

    def __getattr__(self, method):
        return type("Method", (), {"remote": lambda _, *asked: getattr(self, f"on_{method}")()})()

    async def on_describe(self):
        card = CARD.model_copy(update={"classes": self.classes})
        return Description(workload="w", release=1, bytes_before=1, bytes_after=1, queries={QUERY: card})

    async def on_infer(self):
        if self.is_lost:
            raise TimeoutError
        return [FrameAnswer(QUERY, 0, ANSWER, True, None, 5.0, 1)]


def test_a_lost_query_s_last_answer_is_not_repeated_in_other_classes():
    async def last_answers():
        node = Node(THREE)
        backend = HandleBackend({"box": node}, timeout_s=10)
        await backend.infer(QUERY, [noise(0)], slo_ms=None, droppable=True)
        node.is_lost = True
        yield (await backend.infer(QUERY, [noise(0)], slo_ms=None, droppable=True))[0].answer
        node.classes = RENAMED
        await backend._look()
        with contextlib.suppress(ServingError):
            yield await backend.infer(QUERY, [noise(0)], slo_ms=None, droppable=True)

    async def all_of_them():
        return [answer async for answer in last_answers()]

    assert asyncio.run(all_of_them()) == [ANSWER]

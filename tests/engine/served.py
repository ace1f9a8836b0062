"""What every release is held to once an engine serves it."""

from tiny_release import CLASSIFIERS, noise

from gemel_ray.engine.engine import Engine


def assert_answers_as_computed_directly(tiny, cache, budget_bytes):
    """All classifiers, in a budget; weights come and go where it does not hold them all."""
    engine = Engine(budget_bytes=int(budget_bytes), device="cpu", threads=1)
    engine.start(tiny.manifest, cache.fetch)
    try:
        for frame in (noise(1), noise(2)):
            answers = {query: engine.submit(query, frame, droppable=False) for query in CLASSIFIERS}
            for query, answer in answers.items():
                assert [answer.result(timeout=120).answer] == tiny.direct(query, [frame])
        assert 0 < engine.status().peak_bytes <= budget_bytes
    finally:
        engine.stop()

"""Too much at once is refused with the time to come back; what is lost, too."""

import asyncio
import io

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny_release import noise

from gemel_ray.serving.backend import BusyError, Limits
from gemel_ray.serving.engine_backend import EngineBackend, Intake
from gemel_ray.serving.ingress import build_api

REQUESTS = 12


def picture():
    stream = io.BytesIO()
    Image.fromarray(noise(0)).save(stream, "PNG")
    return stream.getvalue()


def all_at_once(url, *paths):
    """Each path is sent a tensor of four frames, all at the same time; the replies in order."""
    frames = np.stack([noise(seed) for seed in range(4)])
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(frames.shape), "data": frames.reshape(-1).tolist()}

    async def ask():
        limits = httpx.Limits(max_connections=len(paths))
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            asked = [client.post(path, json={"inputs": [tensor]}) for path in paths]
            return await asyncio.gather(*asked)

    return asyncio.run(ask())


def assert_some_refused(replies, told):
    refused = [reply for reply in replies if reply.status_code != 200]
    assert 0 < len(refused) < len(replies)
    for reply in refused:
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1"), reply.text
        assert told in reply.json()["error"]
        assert reply.json()["request_id"] == reply.headers["x-request-id"]


def test_more_requests_than_there_may_be_at_once_are_told_to_come_back(server_of, engine, tiny):
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), Limits(max_in_flight=1)))
    path = "/v2/models/north_cars/infer"
    assert_some_refused(all_at_once(url, *[path] * REQUESTS), "1 requests are under way already")
    assert all_at_once(url, path)[0].status_code == 200, "places are free again"
    assert "gemel_requests_in_flight 0.0" in httpx.get(f"{url}/metrics").text


def test_places_are_given_back_after_failures(server_of, engine, tiny):
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), Limits(max_in_flight=1)))
    for _ in range(3):
        assert httpx.post(f"{url}/v2/models/north_cars/infer", content=b"{").status_code == 400
        assert httpx.post(f"{url}/v1/queries/nobody/frames", content=b"").status_code == 404


def test_status_and_health_are_told_while_all_places_are_taken(server_of, engine, tiny):
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), Limits(max_in_flight=0)))
    assert httpx.post(f"{url}/v1/queries/north_cars/frames", content=picture()).status_code == 429
    for path in ("/v1/status", "/v2/health/ready", "/v2/models/north_cars", "/metrics", "/"):
        assert httpx.get(url + path).status_code == 200


def test_a_full_engine_tells_to_come_back(server_of, engine, tiny):
    url = server_of(build_api(EngineBackend(engine, tiny.manifest, max_pending_bytes=1)))
    path = "/v2/models/north_cars/infer"
    assert_some_refused(all_at_once(url, *[path] * REQUESTS), "bytes of pixels wait already and 26880 came, 1 are")
    assert all_at_once(url, path)[0].status_code == 200


def test_an_intake_holds_no_more_than_it_may_but_always_one_request():
    intake, frames = Intake(most_bytes=10_000), [noise(0)]
    told = "60480 bytes of pixels wait already and 6720 came, 10000 are the most"
    with intake.hold([noise(0)] * 9), pytest.raises(BusyError, match=told):
        intake.hold(frames).__enter__()
    with intake.hold(frames), pytest.raises(BusyError):
        intake.hold(frames).__enter__()
    with intake.hold(frames):
        pass


def test_an_engine_that_is_lost_is_told_with_the_time_to_come_back(server_of, start, tiny):
    engine = start(tiny)
    url = server_of(build_api(EngineBackend(engine, tiny.manifest)))
    engine.stop()
    reply = httpx.post(f"{url}/v1/queries/north_cars/frames", content=picture())
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert "stopped" in reply.json()["error"]

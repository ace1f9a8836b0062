"""Too much at once is refused with the time to come back; what is lost, too."""

import asyncio
import contextlib
import io
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny_release import noise

from gemel_ray.serving.backend import BusyError, Limits
from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.spec.errors import FrameError

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


def half_sent(url, headers, path="/v1/queries/north_cars/frames"):
    """A request of which nothing comes any more after the first bytes of its body."""
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port), timeout=60)
    lines = [f"POST {path} HTTP/1.1", f"Host: {address.host}", *headers]
    chunk = b"1000\r\n" if "Transfer-Encoding: chunked" in headers else b""
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + chunk + picture()[:300])
    return connection


def whole_reply(connection):
    """All that comes until the server closes the connection."""
    with connection.makefile("rb") as reply:
        return reply.read().decode()


@pytest.mark.parametrize(
    ("path", "headers", "told"),
    [
        ("/v1/queries/north_cars/frames", ["Content-Type: image/png", "Content-Length: 1000"], "300 of 1000 bytes"),
        (
            "/v1/queries/north_cars/frames",
            ["Content-Type: multipart/mixed; boundary=x", "Content-Length: 1000"],
            "300 of",
        ),
        ("/v2/models/north_cars/infer", ["Content-Length: 1000"], "300 of 1000 bytes"),
        ("/v2/models/north_cars/infer", ["Transfer-Encoding: chunked"], "300 bytes, and no end,"),
    ],
)
def test_a_body_that_stops_half_way_frees_its_place(server_of, engine, tiny, path, headers, told):
    limits = Limits(max_in_flight=1, request_timeout_s=0.5)
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), limits))
    with contextlib.closing(half_sent(url, headers, path)) as connection:
        reply = whole_reply(connection)
        assert reply.startswith("HTTP/1.1 408 ")
        assert told in reply
        assert "arrived within 0.5 s; send it faster" in reply
    assert httpx.post(f"{url}/v1/queries/north_cars/frames", content=picture()).status_code == 200


def test_a_caller_who_is_gone_frees_its_place_at_once(server_of, engine, tiny):
    limits = Limits(max_in_flight=1, request_timeout_s=60)
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), limits))
    half_sent(url, ["Content-Length: 1000"]).close()
    deadline = time.monotonic() + 30
    while httpx.post(f"{url}/v1/queries/north_cars/frames", content=picture()).status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


@contextlib.contextmanager
def computing_held_up(engine):
    """Nothing computes until the end of this."""
    go_on = threading.Event()
    engine._run.device._computing.put(lambda: go_on.wait(60) and None)
    try:
        yield
    finally:
        go_on.set()


def wait_until(is_so):
    until_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.005)


async def has_begun(engine):
    while not engine.waiting("north_cars").frames:
        await asyncio.sleep(0)


def asked(backend, frames=1):
    return backend.infer("north_cars", [noise(0)] * frames, slo_ms=None, droppable=False)


def test_an_engine_takes_no_more_pixels_than_it_may_but_always_one_request(engine, tiny):
    backend = EngineBackend(engine, tiny.manifest, max_pending_bytes=10_000)

    async def ask():
        with computing_held_up(engine):
            first = asyncio.create_task(asked(backend, 9))
            await has_begun(engine)
            with pytest.raises(BusyError, match="60480 bytes of pixels wait already and 6720 came, 10000 are the most"):
                await asked(backend)
        return await first, await asked(backend)

    first, second = asyncio.run(ask())
    assert all(answer.fresh for answer in (*first, *second))


def test_frames_of_requests_that_were_given_up_are_not_computed_and_keep_nobody_waiting(start, tiny):
    engine = start(tiny)
    backend = EngineBackend(engine, tiny.manifest, timeout_s=0.3)

    async def ask():
        with computing_held_up(engine):
            given_up = await asyncio.gather(*(asked(backend, 16) for _ in range(4)), return_exceptions=True)
        return given_up, await asked(EngineBackend(engine, tiny.manifest))

    given_up, (answer,) = asyncio.run(ask())
    assert all("no answer within 0.3 s" in str(error) for error in given_up)
    assert answer.fresh
    counts = engine.status().queries["north_cars"]
    # What was about to compute already is no more than one batch.
    assert counts.withdrawn >= 4 * 16 - 8
    assert counts.answered + counts.withdrawn == counts.arrived == 4 * 16 + 1
    assert engine.waiting("north_cars").pixel_bytes == 0
    engine.stop()


def test_frames_that_could_not_be_answered_in_time_are_told_to_come_back(start, tiny):
    engine = start(tiny)
    patient, hasty = EngineBackend(engine, tiny.manifest), EngineBackend(engine, tiny.manifest, timeout_s=1e-4)

    async def ask():
        # So that the engine knows how long they take.
        await asked(patient, 64)
        with computing_held_up(engine):
            first = asyncio.create_task(asked(patient, 4))
            await has_begun(engine)
            with pytest.raises(BusyError, match=r"4 frames wait already; with 2 more they take .*, 0\.0001 s are the"):
                await asked(hasty, 2)
        return await first

    assert all(answer.fresh for answer in asyncio.run(ask()))
    assert engine.status().queries["north_cars"].arrived == 68
    engine.stop()


def test_of_a_request_that_is_refused_halfway_nothing_is_computed(start, tiny):
    engine = start(tiny)
    frames = [noise(0), noise(0), np.zeros((8, 8), np.uint8)]

    async def ask():
        with computing_held_up(engine), pytest.raises(FrameError):
            await EngineBackend(engine, tiny.manifest).infer("north_cars", frames, slo_ms=None, droppable=False)

    asyncio.run(ask())
    wait_until(lambda: engine.waiting("north_cars").pixel_bytes == 0)
    counts = engine.status().queries["north_cars"]
    assert (counts.arrived, counts.answered, counts.withdrawn) == (2, 0, 2)
    engine.stop()


def test_an_engine_that_is_lost_is_told_with_the_time_to_come_back(server_of, start, tiny):
    engine = start(tiny)
    url = server_of(build_api(EngineBackend(engine, tiny.manifest)))
    engine.stop()
    reply = httpx.post(f"{url}/v1/queries/north_cars/frames", content=picture())
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert "stopped" in reply.json()["error"]

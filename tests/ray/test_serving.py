"""Serving on real Ray Serve, over real HTTP, with a budget that holds only some of the models."""

import io
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from ray.serve.context import _get_global_client
from tiny_release import CLASSES, CLASSIFIERS, noise, publish_tiny_release

from gemel_ray.serving.local import check_port, serve_release
from gemel_ray.serving.options import NodeOptions
from gemel_ray.spec.errors import OverBudgetError, ServingError, StoreError

pytestmark = pytest.mark.ray

JPEG = {"content-type": "image/jpeg"}
# Long enough for a machine that is busy with other things.
PATIENCE_S = 120


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="module")
def service(ray_session, tiny, tmp_path_factory):
    node = NodeOptions(memory=int(0.8 * tiny.manifest.bytes_after), device="cpu", threads=1)
    with serve_release(tiny.store, nodes=[node], cache=tmp_path_factory.mktemp("cache"), port=free_port()) as service:
        yield service


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
        yield client


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def encoded(frame, form):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, form)
    return stream.getvalue()


def decoded(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def ask(client, query, data, form="jpeg"):
    url = f"/v1/queries/{query}/frames?slo_ms=60000"
    return client.post(url, content=data, headers={"content-type": f"image/{form}"})


def assert_like_direct(tiny, query, data, reply):
    (wanted,) = tiny.direct(query, [decoded(data)])
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert (found["query"], found["fresh"]) == (query, True)
    assert found["answer"]["label"] == wanted.label
    assert [found["answer"]["scores"][name] for name in CLASSES] == pytest.approx(wanted.scores, abs=1e-5)


def engine_pid():
    application = _get_global_client().get_serve_details()["applications"]["gemel"]
    (replica,) = application["deployments"]["engine-local"]["replicas"]
    return replica["pid"]


@pytest.mark.parametrize("query", CLASSIFIERS)
@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_pictures_are_answered_like_direct_forward_passes(client, tiny, query, form):
    for seed in range(2):
        data = encoded(noise(seed), form)
        assert_like_direct(tiny, query, data, ask(client, query, data, form))


@pytest.mark.data
def test_frames_of_real_cameras_are_answered_like_direct_forward_passes(client, tiny, shared_video):
    frames = sorted(shared_video.glob("cameras/*/frames/*.jpg"))[::400]
    assert frames
    for place, path in enumerate(frames):
        query = CLASSIFIERS[place % len(CLASSIFIERS)]
        assert_like_direct(tiny, query, path.read_bytes(), ask(client, query, path.read_bytes()))


def test_a_batch_of_tensors_is_answered_like_a_direct_forward_pass(client, tiny):
    frames = np.stack([noise(seed) for seed in range(3)])
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(frames.shape), "data": frames.tolist()}
    reply = client.post("/v2/models/south_people/infer", json={"id": "7", "inputs": [tensor]})
    assert reply.status_code == 200, reply.text
    outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
    wanted = tiny.direct("south_people", list(frames))
    assert outputs["label"] == [answer.label for answer in wanted]
    assert outputs["scores"] == pytest.approx([s for answer in wanted for s in answer.scores], abs=1e-5)


def test_the_memory_budget_holds_at_every_look_while_all_queries_are_asked_at_once(client, tiny):
    data = encoded(noise(0), "jpeg")
    with ThreadPoolExecutor(len(CLASSIFIERS)) as cameras:
        asked = [cameras.submit(ask, client, query, data) for _ in range(15) for query in CLASSIFIERS]
        looks = [client.get("/v1/status").json()["nodes"][0]]
        while not all(future.done() for future in asked):
            looks.append(client.get("/v1/status").json()["nodes"][0])
    # A newer frame may have taken the place of an older one: that is an answer, too.
    assert {future.result().status_code for future in asked} == {200}
    assert all(0 <= look["memory"]["resident_bytes"] <= look["memory"]["budget_bytes"] for look in looks)
    last = client.get("/v1/status").json()["nodes"][0]
    assert last["memory"]["peak_bytes"] <= last["memory"]["budget_bytes"] < tiny.manifest.bytes_after
    assert last["loads"] > len(tiny.manifest.blobs)


@pytest.mark.parametrize(
    ("path", "content", "status", "told"),
    [
        ("/v1/queries/north_cars/frames", b"", 400, "it is empty"),
        ("/v1/queries/north_cars/frames", encoded(noise(0), "jpeg")[:500], 400, "damaged"),
        ("/v1/queries/north_cars/frames", encoded(np.zeros((1, 40_000_000, 3), np.uint8), "png"), 400, "scale it down"),
        ("/v1/queries/north_cars/frames", bytes(65 * 2**20), 413, "at most 67108864"),
        ("/v1/queries/north_cars/frames?slo_ms=-1", b"", 400, "slo_ms"),
        ("/v1/queries/north_car/frames", b"", 404, "did you mean 'north_cars'"),
        ("/v2/models/north_cars/infer", b"{", 400, "Invalid JSON"),
        (
            "/v2/models/north_cars/infer",
            b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [9], "data": [0]}]}',
            400,
            "shape [9]; send [H, W, 3]",
        ),
        ("/v3", b"", 404, "no such path"),
    ],
    ids=["empty", "cut", "wide", "heavy", "slo", "query", "json", "shape", "path"],
)
def test_bad_input_is_refused_with_the_reason(client, path, content, status, told):
    reply = client.post(path, content=content, headers=JPEG)
    assert reply.status_code == status, reply.text
    assert told in reply.json()["error"]


def test_callers_who_leave_early_do_no_harm(client, service, tiny):
    data = encoded(noise(0), "jpeg")
    address = (client.base_url.host, client.base_url.port)
    line = "POST /v1/queries/north_cars/frames HTTP/1.1"
    head = f"{line}\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
    for sent in (data[:100], data):
        for _ in range(5):
            with socket.create_connection(address) as caller:
                caller.sendall(head.encode() + sent)
    assert_like_direct(tiny, "north_cars", data, ask(client, "north_cars", data))
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_recorded_frames_are_replayed_inside_the_engine(service, tiny):
    streams = {query: [noise(seed, 300, 300) for seed in range(3)] for query in CLASSIFIERS[:2]}
    fps, slo_ms = dict.fromkeys(streams, 5.0), dict.fromkeys(streams, 60_000.0)
    found = service.engines["local"].replay.remote(streams, fps, slo_ms).result(timeout_s=PATIENCE_S)
    assert sorted((answer.query, answer.frame) for answer in found) == [
        (q, i) for q in CLASSIFIERS[:2] for i in range(3)
    ]
    for answer in found:
        (wanted,) = tiny.direct(answer.query, [streams[answer.query][answer.frame]])
        assert answer.answer.scores == pytest.approx(wanted.scores, abs=1e-5)


def test_the_status_page_is_served(client):
    assert "<title>" in client.get("/").text


def test_an_engine_that_is_killed_comes_back_and_answers_again(client, tiny):
    before = engine_pid()
    data = encoded(noise(0), "jpeg")
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while (reply := ask(client, "south_cars", data)).status_code != 200:
        assert reply.status_code == 503, reply.text
        assert "local" in reply.json()["error"]
        assert reply.headers["retry-after"]
        assert time.monotonic() < deadline, reply.text
        pause.wait(0.1)
    assert_like_direct(tiny, "south_cars", data, reply)
    assert engine_pid() != before


def test_a_port_that_is_taken_is_told(service):
    url = httpx.URL(service.url)
    with pytest.raises(ServingError, match=f"127.0.0.1:{url.port} cannot be used"):
        check_port("127.0.0.1", url.port)


def test_a_missing_store_is_told_with_its_whole_path(ray_session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEMEL_HOME", raising=False)
    with (
        pytest.raises(StoreError, match=f"{tmp_path}/no/store.*gemel demo"),
        serve_release("no/store", nodes=[NodeOptions(memory="64MiB")], cache=tmp_path),
    ):
        pass


def test_a_budget_smaller_than_one_model_is_told_before_anything_starts(ray_session, tiny, tmp_path):
    with (
        pytest.raises(OverBudgetError, match="north_cars"),
        serve_release(tiny.store, nodes=[NodeOptions(memory="1MiB")], cache=tmp_path),
    ):
        pass

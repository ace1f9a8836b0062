"""Serving on real Ray Serve, over real HTTP, with a budget that holds only some of the models."""

import io
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
import tritonclient.http as triton
from PIL import Image
from ray.serve.context import _get_global_client
from tiny_release import CLASSES, CLASSIFIERS, noise, publish_tiny_release

from gemel_ray.edge.traffic import Camera, spread
from gemel_ray.serving.local import check_port, serve_release
from gemel_ray.serving.options import NodeOptions
from gemel_ray.serving.tokens import TokenSource
from gemel_ray.spec.errors import InputError, OverBudgetError, ServingError, StoreError

pytestmark = pytest.mark.ray

JPEG = {"content-type": "image/jpeg"}
# Long enough for a machine that is busy with other things.
PATIENCE_S = 120
ADMIN, READ = "admin-" + "a" * 32, "read-" + "r" * 32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="module")
def read_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "read"
    file.write_text(READ + "\n")
    return file


@pytest.fixture(scope="module")
def service(ray_session, tiny, read_file, tmp_path_factory):
    node = NodeOptions(memory=int(0.8 * tiny.manifest.bytes_after), device="cpu", threads=1)
    folder = tmp_path_factory.mktemp("cache")
    tokens = {"admin": TokenSource(env="GEMEL_TEST_TOKEN"), "read": TokenSource(file=str(read_file))}
    with pytest.MonkeyPatch.context() as patch:
        # Known here alone: Ray's workers are running already, and are told hashes only.
        patch.setenv("GEMEL_TEST_TOKEN", ADMIN)
        with serve_release(tiny.store, nodes=[node], cache=folder, port=free_port(), tokens=tokens) as service:
            yield service


@pytest.fixture
def client(service):
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S, headers=headers) as client:
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


def pid_of(deployment):
    application = _get_global_client().get_serve_details()["applications"]["gemel"]
    (replica,) = application["deployments"][deployment]["replicas"]
    return replica["pid"]


def engine_pid():
    return pid_of("engine-local")


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
    token = f"Authorization: Bearer {ADMIN}"
    head = f"{line}\r\nHost: x\r\n{token}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
    for sent in (data[:100], data):
        for _ in range(5):
            with socket.create_connection(address) as caller:
                caller.sendall(head.encode() + sent)
    assert_like_direct(tiny, "north_cars", data, ask(client, "north_cars", data))
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_recorded_frames_are_replayed_inside_the_engine(service, tiny):
    streams = {query: [noise(seed, 300, 300) for seed in range(3)] for query in CLASSIFIERS[:2]}
    cameras = spread([Camera(query, fps=5, slo_ms=60_000) for query in streams])
    found = service.engines["local"].replay.remote(streams, cameras).result(timeout_s=PATIENCE_S)
    assert sorted((answer.query, answer.frame) for answer in found) == [
        (q, i) for q in CLASSIFIERS[:2] for i in range(3)
    ]
    for answer in found:
        (wanted,) = tiny.direct(answer.query, [streams[answer.query][answer.frame]])
        assert answer.answer.scores == pytest.approx(wanted.scores, abs=1e-5)


def test_callers_without_a_token_learn_nothing_but_health(service):
    refused = httpx.get(f"{service.url}/v1/status", timeout=PATIENCE_S)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="gemel_ray"')
    assert httpx.get(f"{service.url}/v2/health/ready", timeout=PATIENCE_S).json() == {"ready": True}


def test_a_role_is_kept_to_what_is_its_own(service):
    headers = {"Authorization": f"Bearer {READ}"}
    assert httpx.get(f"{service.url}/v1/status", headers=headers, timeout=PATIENCE_S).status_code == 200
    url = f"{service.url}/v1/queries/north_cars/frames"
    assert httpx.post(url, headers=headers, content=b"", timeout=PATIENCE_S).status_code == 403


def test_a_token_that_was_taken_out_of_its_file_is_soon_refused(service, read_file):
    def answered(token):
        url, headers = f"{service.url}/v1/status", {"Authorization": f"Bearer {token}"}
        return httpx.get(url, headers=headers, timeout=PATIENCE_S).status_code

    assert answered(READ) == 200
    read_file.write_text("new" + READ)
    deadline = time.monotonic() + PATIENCE_S
    while answered("new" + READ) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (answered(READ), answered(ADMIN)) == (401, 200)
    read_file.write_text(READ)


def test_nvidia_s_client_gets_binary_answers_like_direct_forward_passes(service, tiny):
    frames = np.stack([noise(seed) for seed in range(3)])
    tensor = triton.InferInput("image", list(frames.shape), "UINT8").set_data_from_numpy(frames)
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        found = client.infer("north_people", [tensor], headers={"Authorization": f"Bearer {ADMIN}"})
    wanted = tiny.direct("north_people", list(frames))
    assert [label.decode() for label in found.as_numpy("label")] == [answer.label for answer in wanted]
    assert found.as_numpy("scores") == pytest.approx(np.array([answer.scores for answer in wanted]), abs=1e-5)


def test_results_are_streamed_through_serve_until_the_listener_leaves(client):
    with client.stream("GET", "/v1/queries/north_cars/results") as reply:
        lines = reply.iter_lines()
        assert next(lines) == ": listening"
        given = ask(client, "north_cars", encoded(noise(0), "jpeg")).json()
        told = next(line for line in lines if line.startswith("data: "))
        assert json.loads(told.removeprefix("data: ")) == given
        assert metric(client, "gemel_result_listeners") == 1
    deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while metric(client, "gemel_result_listeners") > 0:
        assert time.monotonic() < deadline
        pause.wait(0.05)


def test_the_cluster_s_own_metrics_have_the_same_numbers(service, client):
    """Where Ray's Prometheus and its dashboards look: the metrics port of the node."""
    frame = encoded(noise(3), "jpeg")
    assert client.post("/v1/queries/north_cars/frames", content=frame, headers=JPEG).status_code == 200
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = (
        r'ray_gemel_node_up{.*node="local".*} 1\.0',
        r'ray_gemel_frames_answered_total{.*query="north_cars".*} \d',
    )
    deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while not all(re.search(pattern, httpx.get(url).text) for pattern in wanted):
        assert time.monotonic() < deadline, [line for line in httpx.get(url).text.splitlines() if "gemel" in line][:20]
        pause.wait(0.2)


def metric(client, name):
    return float(re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)[1])


@pytest.mark.parametrize("headers", [{"X-Request-ID": "camera-7"}, {}], ids=["named", "nameless"])
def test_a_request_has_one_name_on_its_answer_and_in_its_error(client, headers):
    reply = client.get("/v9", headers=headers)
    (name,) = reply.headers.get_list("x-request-id")
    assert name == reply.json()["request_id"]
    assert headers.get("X-Request-ID", name) == name


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc to look into a process")
def test_the_ingress_process_does_not_hold_torch(service):
    assert "libtorch" in Path(f"/proc/{engine_pid()}/maps").read_text()
    assert "libtorch" not in Path(f"/proc/{pid_of('ingress')}/maps").read_text()


def test_the_status_page_is_served(client):
    assert "<title>" in client.get("/").text


def test_an_engine_that_is_killed_comes_back_and_answers_again(client, tiny):
    before = engine_pid()
    data = encoded(noise(0), "jpeg")
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while (reply := ask(client, "south_cars", data)).status_code != 200 or not reply.json()["fresh"]:
        # Its last answer, where there is one, and the reason.
        told = reply.json()
        assert "local" in (told["reason"] if reply.status_code == 200 else told["error"])
        assert reply.status_code == 200 or (reply.status_code == 503 and reply.headers["retry-after"])
        assert time.monotonic() < deadline, reply.text
        pause.wait(0.1)
    assert_like_direct(tiny, "south_cars", data, reply)
    assert engine_pid() != before


def test_a_port_that_is_taken_is_told(service):
    url = httpx.URL(service.url)
    with pytest.raises(ServingError, match=f"127.0.0.1:{url.port} cannot be used"):
        check_port("127.0.0.1", url.port)


def test_a_public_host_without_tokens_is_refused_before_anything_starts(tiny, tmp_path):
    with (
        pytest.raises(InputError, match=r"host '0\.0\.0\.0' can be reached from other machines"),
        serve_release(tiny.store, nodes=[NodeOptions(memory="64MiB")], cache=tmp_path, host="0.0.0.0"),
    ):
        pass


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

"""The HTTP application over a real engine in this process."""

import io
import re
from importlib import resources

import numpy as np
import pytest
from PIL import Image
from tiny_release import CLASSES, CLASSIFIERS, noise, publish_tiny_release

from gemel_ray.serving.engine_backend import EngineBackend

JPEG = {"content-type": "image/jpeg"}
PNG = {"content-type": "image/png"}


def encoded(frame, form="PNG"):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, form, **({"quality": 90} if form == "JPEG" else {}))
    return stream.getvalue()


def decoded(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def tensor(frames):
    return {"name": "image", "datatype": "UINT8", "shape": list(frames.shape), "data": frames.reshape(-1).tolist()}


def infer(client, query, frames, **more):
    return client.post(f"/v2/models/{query}/infer", json={"inputs": [tensor(frames)], **more})


@pytest.mark.parametrize("query", CLASSIFIERS)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_is_answered_like_a_direct_forward_pass(client, tiny, query, form):
    for seed in range(3):
        data = encoded(noise(seed), form)
        reply = client.post(
            f"/v1/queries/{query}/frames", content=data, headers={"content-type": f"image/{form.lower()}"}
        )
        (wanted,) = tiny.direct(query, [decoded(data)])
        assert reply.status_code == 200, reply.text
        found = reply.json()
        assert (found["query"], found["fresh"], found["reason"], found["release"]) == (query, True, None, 1)
        assert found["answer"]["label"] == wanted.label
        assert [found["answer"]["scores"][name] for name in CLASSES] == pytest.approx(wanted.scores, abs=1e-5)


@pytest.fixture(scope="module")
def harbour(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("harbour") / "store", ["harbour_boxes"])


@pytest.fixture(scope="module")
def harbour_client(harbour, start, client_of):
    engine = start(harbour, budget_bytes=2**30)
    yield client_of(EngineBackend(engine, harbour.manifest))
    engine.stop()


def test_a_detector_answers_boxes_like_a_direct_forward_pass(harbour_client, harbour):
    reply = harbour_client.post("/v1/queries/harbour_boxes/frames", content=encoded(noise(0)), headers=PNG)
    (wanted,) = harbour.direct("harbour_boxes", [noise(0)])
    boxes = reply.json()["answer"]["boxes"]
    assert len(boxes) > 0
    assert [box["label"] for box in boxes] == [box.label for box in wanted.boxes]
    for box, other in zip(boxes, wanted.boxes, strict=True):
        given = (box["score"], box["x"], box["y"], box["width"], box["height"])
        assert given == pytest.approx((other.score, other.x, other.y, other.width, other.height), abs=1e-3)


def test_a_detector_answers_tensors_with_a_count_for_each_frame(harbour_client, harbour):
    reply = infer(harbour_client, "harbour_boxes", np.stack([noise(0), noise(3)]))
    outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
    wanted = harbour.direct("harbour_boxes", [noise(0), noise(3)])
    assert outputs["count"] == [len(answer.boxes) for answer in wanted]
    assert outputs["scores"] == pytest.approx([box.score for answer in wanted for box in answer.boxes], abs=1e-5)
    assert len(outputs["boxes"]) == 4 * sum(outputs["count"])
    promised = harbour_client.get("/v2/models/harbour_boxes").json()["outputs"]
    assert [output["name"] for output in promised] == list(outputs)


@pytest.mark.parametrize("query", CLASSIFIERS)
def test_a_batch_of_tensors_is_answered_like_a_direct_forward_pass(client, tiny, query):
    frames = np.stack([noise(seed) for seed in range(4)])
    reply = infer(client, query, frames, id="abc")
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert (found["id"], found["model_name"], found["model_version"]) == ("abc", query, "1")
    assert found["parameters"]["fresh"] is True
    outputs = {output["name"]: output for output in found["outputs"]}
    wanted = tiny.direct(query, list(frames))
    assert outputs["label"]["data"] == [answer.label for answer in wanted]
    assert outputs["scores"]["shape"] == [4, len(CLASSES)]
    assert outputs["scores"]["data"] == pytest.approx([s for answer in wanted for s in answer.scores], abs=1e-5)


def test_answers_differ_from_frame_to_frame(client):
    """Otherwise the tests above could not see frames or queries mixed up."""
    found = {}
    for query in CLASSIFIERS:
        scores = infer(client, query, np.stack([noise(0), noise(1)])).json()["outputs"][1]["data"]
        assert scores[:3] != pytest.approx(scores[3:], abs=1e-4)
        found[query] = tuple(scores)
    assert len(set(found.values())) == len(CLASSIFIERS)


def test_the_memory_budget_holds_while_models_are_swapped(client, tiny):
    for query in (*tiny.models, *tiny.models):
        assert infer(client, query, noise(0)).status_code == 200
    node = client.get("/v1/status").json()["nodes"][0]
    memory = node["memory"]
    assert memory["budget_bytes"] < tiny.manifest.bytes_after
    assert 0 < memory["resident_bytes"] + memory["workspace_bytes"] <= memory["peak_bytes"] <= memory["budget_bytes"]
    assert node["loads"] > len(tiny.manifest.blobs)


def test_status_tells_what_is_served_and_how_it_goes(client, tiny):
    infer(client, "north_cars", noise(0))
    status = client.get("/v1/status").json()
    assert (status["workload"], status["release"]) == ("tiny-street", 1)
    assert (status["bytes_before"], status["bytes_after"]) == (tiny.manifest.bytes_before, tiny.manifest.bytes_after)
    query = next(found for found in status["queries"] if found["name"] == "north_cars")
    assert query["answered"] >= 1
    assert query["p50_latency_ms"] > 0
    assert query["agreement"] == 0.97
    assert query["weights_bytes"] == tiny.bytes_of("north_cars")
    assert query["shared_bytes"] > 0
    assert query["last_answer"]["label"] in CLASSES


def test_a_client_learns_inputs_and_outputs(client):
    assert client.get("/v2").json()["name"] == "gemel_ray"
    for path in ("/v2/models/north_cars", "/v2/models/north_cars/versions/1"):
        found = client.get(path).json()
        assert found["versions"] == ["1"]
        assert found["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
        assert [output["name"] for output in found["outputs"]] == ["label", "scores"]
        assert found["properties"]["classes"] == "background,car,person"


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v2/health/ready", "/v2/models/north_cars/ready", "/v2/models/north_cars/versions/1/ready"],
)
def test_a_running_service_is_alive_and_ready(client, path):
    assert client.get(path).status_code == 200


def test_a_version_may_be_named(client):
    frames = {"inputs": [tensor(noise(0))]}
    assert client.post("/v2/models/north_cars/versions/1/infer", json=frames).status_code == 200
    refused = client.post("/v2/models/north_cars/versions/2/infer", json=frames)
    assert refused.status_code == 404
    assert "release 1 is" in refused.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "told"),
    [
        (b"", JPEG, 400, "it is empty"),
        (b"GIF89a", JPEG, 400, "neither JPEG nor PNG"),
        (encoded(noise(0), "JPEG")[:700], JPEG, 400, "damaged .* send it whole"),
        (encoded(noise(0))[:700], PNG, 400, "damaged"),
        (encoded(noise(0, 101, 100)), PNG, 400, "100 x 101 pixels, at most 10000 are accepted; scale it down"),
        (b"x" * 200_001, JPEG, 413, "200001 bytes; at most 200000"),
        (encoded(noise(0)), {"content-type": "text/plain"}, 415, "'text/plain'; send image/jpeg"),
    ],
    ids=["empty", "gif", "cut jpeg", "cut png", "large", "heavy", "text"],
)
def test_a_bad_picture_is_refused_with_the_reason(client, content, headers, status, told):
    reply = client.post("/v1/queries/north_cars/frames", content=content, headers=headers)
    assert reply.status_code == status
    assert re.search(told, reply.json()["error"]), reply.text


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(client):
    async def parts():
        for _ in range(5):
            yield b"x" * 50_000

    reply = client.post("/v1/queries/north_cars/frames", content=parts(), headers=JPEG)
    assert reply.status_code == 413


@pytest.mark.parametrize("slo_ms", ["0", "-5", "nan", "inf", "soon"])
def test_a_senseless_slo_is_refused(client, slo_ms):
    url = f"/v1/queries/north_cars/frames?slo_ms={slo_ms}"
    reply = client.post(url, content=encoded(noise(0)), headers=PNG)
    assert reply.status_code == 400
    assert "query.slo_ms" in reply.json()["error"]
    assert slo_ms in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/queries/north_car/frames"),
        ("GET", "/v2/models/north_car"),
        ("GET", "/v2/models/north_car/ready"),
        ("POST", "/v2/models/north_car/infer"),
    ],
)
def test_an_unknown_query_is_told_the_nearest_name(client, method, path):
    reply = client.request(method, path)
    assert reply.status_code == 404
    assert "'north_car'" in reply.json()["error"]
    assert "did you mean 'north_cars'?" in reply.json()["error"]


def test_a_bad_tensor_is_refused_with_the_reason(client):
    reply = client.post("/v2/models/north_cars/infer", json={"inputs": [tensor(noise(0)) | {"shape": [40, 56, 4]}]})
    assert reply.status_code == 400
    assert "shape [40, 56, 4]; send [H, W, 3]" in reply.json()["error"]


def test_too_many_frames_are_refused(client):
    reply = infer(client, "north_cars", np.zeros((5, 4, 4, 3), np.uint8))
    assert reply.status_code == 400
    assert "at most 4" in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v3/models", 404), ("GET", "/v2/models/north_cars/infer", 405)]
)
def test_a_wrong_path_or_method_is_answered_in_json_too(client, method, path, status):
    reply = client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]


def test_a_late_frame_gets_the_last_answer_marked_stale(client, tiny):
    first = client.post("/v1/queries/north_people/frames", content=encoded(noise(0)), headers=PNG).json()
    reply = client.post("/v1/queries/north_people/frames?slo_ms=0.0001", content=encoded(noise(1)), headers=PNG)
    assert reply.status_code == 200, reply.text
    assert (reply.json()["fresh"], reply.json()["reason"]) == (False, "too late")
    assert reply.json()["answer"] == first["answer"]


def test_a_late_frame_without_an_earlier_answer_is_told_to_try_again(start, tiny, client_of):
    engine = start(tiny)
    try:
        client = client_of(EngineBackend(engine, tiny.manifest))
        reply = client.post("/v1/queries/north_cars/frames?slo_ms=0.0001", content=encoded(noise(0)), headers=PNG)
    finally:
        engine.stop()
    assert reply.status_code == 503
    assert "too late" in reply.json()["error"]
    assert reply.headers["retry-after"] == "1"


def test_a_stopped_engine_is_unavailable_but_alive(start, tiny, client_of):
    engine = start(tiny)
    engine.stop()
    client = client_of(EngineBackend(engine, tiny.manifest))
    reply = client.post("/v1/queries/north_cars/frames", content=encoded(noise(0)), headers=PNG)
    assert (reply.status_code, "stopped" in reply.json()["error"]) == (503, True)
    assert infer(client, "north_cars", noise(0)).status_code == 503
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/models/north_cars/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200
    assert "stopped" in client.get("/v1/status").json()["nodes"][0]["problem"]


def test_an_engine_that_takes_too_long_is_given_up(engine, tiny, client_of):
    reply = infer(client_of(EngineBackend(engine, tiny.manifest, timeout_s=1e-6)), "north_cars", noise(0))
    assert reply.status_code == 503
    assert "no answer within" in reply.json()["error"]


class Broken:
    """A backend with a bug."""

    async def describe(self):
        raise ZeroDivisionError("secret of the house")

    infer = status = describe


def test_a_bug_is_answered_without_its_traceback(client_of):
    reply = client_of(Broken()).get("/v1/status")
    assert reply.status_code == 500
    assert "ZeroDivisionError" in reply.json()["error"]
    assert "secret" not in reply.text


def test_the_page_is_complete_in_itself(client):
    reply = client.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.text == resources.files("gemel_ray.serving").joinpath("page.html").read_text()
    assert re.findall(r"https?://|@import|src\s*=|innerHTML", reply.text) == []
    assert re.findall(r"localStorage|document.cookie", reply.text) == [], "a token must not outlive its tab"

"""NVIDIA's client, as it comes, against a real server: the other side of the protocol was not written by us."""

import io

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tiny_release import CLASSES, CLASSIFIERS, noise, publish_tiny_release

from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.tokens import Guard, Tokens


@pytest.fixture
def client(url):
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


def image_of(frames, binary=True):
    tensor = triton.InferInput("image", list(frames.shape), "UINT8")
    tensor.set_data_from_numpy(frames, binary_data=binary)
    return tensor


def picture(frame):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG")
    return stream.getvalue()


FRAMES = np.stack([noise(seed) for seed in range(3)])


def assert_like_direct(tiny, query, found, frames=FRAMES):
    wanted = tiny.direct(query, list(frames))
    assert [label.decode() for label in found.as_numpy("label")] == [answer.label for answer in wanted]
    scores = found.as_numpy("scores")
    assert (scores.dtype, scores.shape) == (np.float32, (len(frames), len(CLASSES)))
    assert scores == pytest.approx(np.array([answer.scores for answer in wanted]), abs=1e-5)


def test_the_service_says_what_it_speaks(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("north_cars")
    assert client.is_model_ready("north_cars", model_version="1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert [tensor["name"] for tensor in client.get_model_metadata("north_cars")["outputs"]] == ["label", "scores"]


@pytest.mark.parametrize("query", CLASSIFIERS)
def test_binary_frames_get_binary_answers_like_direct_forward_passes(client, tiny, query):
    found = client.infer(query, [image_of(FRAMES)], request_id="7")
    assert found.get_response()["id"] == "7"
    assert found.get_output("scores")["parameters"]["binary_data_size"] == 4 * len(FRAMES) * len(CLASSES)
    assert_like_direct(tiny, query, found)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_each_side_may_be_binary_or_not(client, tiny, binary_in, binary_out):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "scores")]
    found = client.infer("north_cars", [image_of(FRAMES, binary_in)], outputs=outputs)
    assert ("data" in found.get_output("scores")) is not binary_out
    scores = np.array([answer.scores for answer in tiny.direct("north_cars", list(FRAMES))])
    assert found.as_numpy("scores") == pytest.approx(scores, abs=1e-5)


def test_outputs_come_in_the_order_and_the_form_each_was_asked_for(client, tiny):
    outputs = [triton.InferRequestedOutput("scores", binary_data=True), triton.InferRequestedOutput("label", False)]
    found = client.infer("south_cars", [image_of(FRAMES)], outputs=outputs)
    assert [output["name"] for output in found.get_response()["outputs"]] == ["scores", "label"]
    wanted = tiny.direct("south_cars", list(FRAMES))
    assert found.get_output("label")["data"] == [answer.label for answer in wanted]
    assert found.as_numpy("scores") == pytest.approx(np.array([answer.scores for answer in wanted]), abs=1e-5)


def test_pictures_may_come_as_elements_of_bytes_each_of_its_own_size(client, tiny):
    frames = [noise(0), noise(1, 33, 70)]
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([picture(frame) for frame in frames], dtype=object))
    assert_like_direct(tiny, "north_people", client.infer("north_people", [tensor]), frames)


def test_a_detector_answers_numbers_and_texts_as_bytes(server_of, start, tmp_path):
    harbour = publish_tiny_release(tmp_path / "store", ["harbour_boxes"])
    engine = start(harbour, budget_bytes=2**30)
    try:
        url = server_of(build_api(EngineBackend(engine, harbour.manifest)))
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:
            found = client.infer("harbour_boxes", [image_of(FRAMES)])
    finally:
        engine.stop()
    wanted = harbour.direct("harbour_boxes", list(FRAMES))
    boxes = [box for answer in wanted for box in answer.boxes]
    assert len(boxes) > 0
    assert found.as_numpy("count").dtype == np.int32
    assert found.as_numpy("count").tolist() == [len(answer.boxes) for answer in wanted]
    assert [label.decode() for label in found.as_numpy("labels")] == [box.label for box in boxes]
    corners = np.array([(box.x, box.y, box.width, box.height) for box in boxes])
    assert found.as_numpy("boxes") == pytest.approx(corners, abs=1e-3)


def test_what_is_wrong_is_told_in_the_client_s_own_exception(client):
    with pytest.raises(triton.InferenceServerException, match="did you mean 'north_cars'"):
        client.infer("north_car", [image_of(FRAMES)])
    floats = triton.InferInput("image", [1, 1, 3], "FP32").set_data_from_numpy(np.zeros((1, 1, 3), np.float32))
    with pytest.raises(triton.InferenceServerException, match="datatype 'FP32'; send UINT8"):
        client.infer("north_cars", [floats])
    with pytest.raises(triton.InferenceServerException, match="send the body without compression"):
        client.infer("north_cars", [image_of(FRAMES)], request_compression_algorithm="gzip")


def test_a_token_goes_along_as_a_header(server_of, engine, tiny):
    tokens = Tokens.of(infer=["t" * 32])
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), guard=Guard(tokens)))
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        with pytest.raises(triton.InferenceServerException, match="no bearer token"):
            client.infer("north_cars", [image_of(FRAMES)])
        found = client.infer("north_cars", [image_of(FRAMES)], headers={"Authorization": "Bearer " + "t" * 32})
    assert_like_direct(tiny, "north_cars", found)

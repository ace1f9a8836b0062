"""Tensors as bytes behind the JSON, made by hand: what is taken, what is refused, what comes back."""

import json
import re
import struct
import tracemalloc

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_release import CLASSES, noise

from gemel_ray.serving import binary
from gemel_ray.spec.errors import FrameError

FRAME = noise(0)
BYTES = FRAME.tobytes()
INPUT = {"name": "image", "datatype": "UINT8", "shape": list(FRAME.shape)}


def send(url, behind=BYTES, length=None, parameters=None, tensor=None, **more):
    """An inference request with bytes behind its JSON; whatever is given stands in for what is right."""
    parameters = {"binary_data_size": len(BYTES)} if parameters is None else parameters
    head = json.dumps({"inputs": [INPUT | {"parameters": parameters} | (tensor or {})], **more}).encode()
    headers = {} if length == "none" else {"Inference-Header-Content-Length": str(length or len(head))}
    return httpx.post(f"{url}/v2/models/north_cars/infer", content=head + behind, headers=headers, timeout=60)


def test_bytes_made_by_hand_are_answered_with_the_bytes_of_a_direct_forward_pass(url, tiny):
    reply = send(url, id="7", parameters={"binary_data_size": len(BYTES)}, outputs=[
        {"name": "scores", "parameters": {"binary_data": True}},
        {"name": "label", "parameters": {"binary_data": True}},
    ])  # fmt: skip
    assert reply.status_code == 200, reply.text
    length = int(reply.headers["inference-header-content-length"])
    head, behind = json.loads(reply.content[:length]), reply.content[length:]
    (wanted,) = tiny.direct("north_cars", [FRAME])
    assert (head["id"], head["model_name"]) == ("7", "north_cars")
    assert head["outputs"][0] == {
        "name": "scores",
        "datatype": "FP32",
        "shape": [1, len(CLASSES)],
        "parameters": {"binary_data_size": 4 * len(CLASSES)},
    }
    cut = 4 * len(CLASSES)
    assert struct.unpack(f"<{len(CLASSES)}f", behind[:cut]) == pytest.approx(wanted.scores, abs=1e-5)
    assert behind[cut:] == struct.pack("<I", len(wanted.label)) + wanted.label.encode()


def test_outputs_for_which_nobody_asks_bytes_are_json(url):
    reply = send(
        url,
        parameters={"binary_data_size": len(BYTES)},
        outputs=[{"name": "label", "parameters": {"binary_data": False}}, {"name": "scores"}],
    )
    assert "inference-header-content-length" not in reply.headers
    assert [list(output) for output in reply.json()["outputs"]] == [
        ["name", "datatype", "shape", "parameters", "data"]
    ] * 2


def test_all_outputs_are_binary_when_the_request_says_so_but_for_those_that_say_no(url):
    head = json.dumps({
        "parameters": {"binary_data_output": True},
        "inputs": [INPUT | {"parameters": {"binary_data_size": len(BYTES)}}],
        "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "scores"}],
    }).encode()  # fmt: skip
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = httpx.post(f"{url}/v2/models/north_cars/infer", content=head + BYTES, headers=headers, timeout=60)
    length = int(reply.headers["inference-header-content-length"])
    assert reply.headers["content-type"] == "application/octet-stream"
    assert ["data" in output for output in json.loads(reply.content[:length])["outputs"]] == [True, False]
    assert len(reply.content) == length + 4 * len(CLASSES)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"length": "ten"}, "Inference-Header-Content-Length is 'ten'; send the bytes of the JSON"),
        ({"length": "-1"}, "is '-1'"),
        ({"length": "1_0"}, "is '1_0'"),
        ({"length": 10**9}, r"is 1000000000, the body has \d+ bytes; send the body whole"),
        ({"length": 10**40}, "send the body whole"),
        ({"length": 10}, "Invalid JSON"),
        ({"length": "none"}, "Invalid JSON"),
        ({"behind": BYTES[:-1]}, f"add up to {len(BYTES)} bytes, {len(BYTES) - 1} follow the JSON"),
        ({"behind": BYTES + b"\0"}, f"add up to {len(BYTES)} bytes, {len(BYTES) + 1} follow"),
        ({"behind": b""}, "0 follow the JSON; send the tensors whole"),
        ({"parameters": {}}, f"add up to 0 bytes, {len(BYTES)} follow"),
        (
            {"parameters": {"binary_data_size": 7}, "behind": BYTES[:7]},
            r"is 7, UINT8 of shape \[40, 56, 3\] takes 6720",
        ),
        ({"parameters": {"binary_data_size": -5}}, "'binary_data_size' is -5; send the bytes"),
        ({"parameters": {"binary_data_size": True}}, "is True"),
        ({"parameters": {"binary_data_size": "6720"}}, "is '6720'"),
        ({"tensor": {"data": [1]}}, "both 'data' and 'binary_data_size'; send one"),
        ({"tensor": {"datatype": "FP32"}}, "datatype 'FP32'; send UINT8, .* or BYTES"),
        ({"tensor": {"datatype": "INT32"}}, "datatype 'INT32'; send UINT8"),
        ({"tensor": {"shape": [40, 56, 4]}}, r"shape \[40, 56, 4\]; send \[H, W, 3\]"),
        ({"tensor": {"datatype": "BYTES"}}, r"BYTES has shape \[40, 56, 3\]; send \[N\]"),
        ({"tensor": {"datatype": "BYTES", "shape": [5]}}, "5 frames; send at most 4"),
        ({"tensor": {"datatype": "BYTES", "shape": [1]}}, r"element 0 reaches to byte \d+ of 6720; send the length"),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]}, "'binary_data' is 1; send true or false"),
        ({"outputs": [{"name": "lable"}]}, "did you mean 'label'"),
        ({"tensor": {"name": "picture"}}, "send exactly one, named 'image'"),
    ],
)
def test_a_request_that_does_not_add_up_is_refused_with_the_value_and_the_way_out(url, changes, told):
    reply = send(url, **changes)
    assert reply.status_code == 400, reply.text
    assert re.search(told, reply.json()["error"]), reply.text


def test_a_damaged_picture_among_bytes_is_named_by_its_place(url):
    packed = struct.pack("<I", 3) + b"GIF"
    tensor = {"datatype": "BYTES", "shape": [1]}
    reply = send(url, behind=packed, parameters={"binary_data_size": 7}, tensor=tensor)
    assert reply.status_code == 400
    assert "picture 0 of 1: the body is neither JPEG nor PNG" in reply.json()["error"]


def test_pictures_in_json_are_refused_with_the_way_out(url):
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["abc"]}
    reply = httpx.post(f"{url}/v2/models/north_cars/infer", json={"inputs": [tensor]}, timeout=60)
    assert (reply.status_code, "'binary_data_size'" in reply.json()["error"]) == (400, True)


@given(st.lists(st.text(max_size=20), max_size=5))
def test_texts_survive_the_way_there_and_back(texts):
    packed = binary.encoded("BYTES", texts)
    assert [found.decode() for found in binary.elements("x", len(texts), packed)] == texts


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_bytes_that_are_cut_are_never_taken(elements, data):
    packed = b"".join(struct.pack("<I", len(found)) + found for found in elements)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(FrameError, match=r"reaches to byte|'shape' says"):
        binary.elements("x", len(elements), packed[:cut])


def test_a_body_of_zeros_is_no_tensor_of_millions_of_empty_elements():
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="more elements of BYTES arrived, 'shape' says 2"):
            binary.elements("x", 2, bytes(4_000_000))
        assert tracemalloc.get_traced_memory()[1] < 4_100_000, "nothing but the body itself"
    finally:
        tracemalloc.stop()
    assert binary.elements("x", 2, bytes(8)) == [b"", b""]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6))
def test_numbers_survive_the_way_there_and_back(values):
    packed = binary.encoded("FP32", values)
    assert binary.numbers("x", "FP32", [len(values)], packed).tolist() == values


def test_whole_numbers_are_four_bytes_little_endian():
    assert binary.encoded("INT32", [1, -2]) == b"\x01\x00\x00\x00\xfe\xff\xff\xff"
    assert np.array_equal(binary.numbers("x", "INT32", [2], b"\x01\x00\x00\x00\xfe\xff\xff\xff"), [1, -2])

"""Open Inference Protocol messages: what is taken, what is refused, what comes back."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.serving import wire
from gemel_ray.serving.description import QueryCard
from gemel_ray.spec.answers import Box, Classified, Detected, FrameAnswer
from gemel_ray.spec.errors import FrameError, ServingError

CARD = QueryCard(
    name="cars",
    feed="main_2nd",
    builder="resnet18",
    task="classification",
    classes=("background", "car"),
    slo_ms=100,
    accuracy_target=0.95,
)
DETECTOR = CARD.model_copy(update={"task": "detection"})


def request(**changes):
    tensor = {"name": "image", "shape": [1, 2, 3], "datatype": "UINT8", "data": [0, 1, 2, 3, 4, 255]}
    return wire.parse_request(json.dumps({"id": "7", "inputs": [tensor | changes]}).encode())


def images(given):
    return wire.images_of(given, max_frames=4, max_pixels=100)


def answered(answer, frame=0, latency_ms=5.0):
    return FrameAnswer("cars", frame, answer, answer is not None, None, latency_ms, 3)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.randoms())
def test_frames_arrive_as_they_were_sent_flat_or_nested(frames, height, width, flat, random):
    sent = np.array([random.randrange(256) for _ in range(frames * height * width * 3)], dtype=np.uint8)
    sent = sent.reshape(frames, height, width, 3)
    data = (sent.reshape(-1) if flat else sent).tolist()
    assert np.array_equal(np.stack(images(request(shape=sent.shape, data=data))), sent)


def test_one_frame_may_come_without_the_batch_axis():
    (frame,) = images(request())
    assert frame.tolist() == [[[0, 1, 2], [3, 4, 255]]]
    assert frame.dtype == np.uint8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "img"}, r"named \['img'\]; send exactly one, named 'image'"),
        ({"datatype": "FP32"}, "datatype 'FP32'; send UINT8"),
        ({"shape": [2, 3]}, r"shape \[2, 3\]; send \[H, W, 3\]"),
        ({"shape": [3, 2, 1]}, r"shape \[3, 2, 1\]"),
        ({"shape": [0, 2, 3]}, "nothing empty"),
        ({"shape": [-1, -2, 3]}, "nothing empty"),
        ({"shape": [2, 2, 3]}, "holds 6 values, shape .* needs 12"),
        ({"shape": [5, 1, 2, 3]}, "5 frames; send at most 4"),
        ({"shape": [11, 10, 3]}, "10 x 11 pixels; send at most 100"),
        ({"data": [0, 1, 2, 3, 4, 256]}, "from 0 to 255; found 256"),
        ({"data": [0, 1, 2, 3, 4, -1]}, "found -1"),
        ({"data": [0, 1, 2, 3, 4, 0.5]}, "whole numbers"),
        ({"data": ["a"] * 6}, "found 'a'"),
        ({"data": [True] * 6}, "found True"),
        ({"data": [2**70] * 6}, f"found {2**70}"),
        ({"data": [None] * 6}, "found None"),
        ({"data": [{}] * 6}, "found {}"),
        ({"data": ["a" * 10_000, 0, 0, 0, 0, 0]}, r"found 'a{39}…$"),
        ({"data": [[0, 1, 2], [3, 4]]}, "nested unevenly"),
        ({"data": [[0, 1, 2], [3, 4, 5]]}, r"'data' has shape \[2, 3\]"),
        ({"data": []}, "holds 0 values"),
        ({"data": None}, "no 'data'; send JSON numbers, or bytes behind the JSON"),
    ],
)
def test_a_bad_tensor_is_refused_with_the_field_the_value_and_the_way_out(changes, told):
    with pytest.raises(FrameError, match=told):
        images(request(**changes))


@pytest.mark.parametrize("numbers", [5, 30_000])
def test_a_long_text_among_numbers_takes_no_memory_for_each_of_them(numbers):
    given = request(shape=[1, 2, 3], data=["a" * 30_000, *[0] * numbers])
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match=r"found 'aaa|needs 6"):
            images(given)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"[" * 10_000, "Invalid JSON"),
        (b"[]", "must be a mapping"),
        (b"{}", "inputs: is missing"),
        (b'{"inputs": []}', "inputs: needs 1 or more entries"),
        (b'{"input": [], "inputs": []}', "input: unknown key; did you mean 'inputs'"),
        (b'{"inputs": [{"name": "image", "shape": ["a"], "datatype": "UINT8"}]}', r"inputs\.0\.shape\.0"),
    ],
)
def test_a_bad_body_is_refused_with_the_field_that_is_wrong(body, told):
    with pytest.raises(FrameError, match=told):
        wire.parse_request(body)


def test_two_inputs_are_refused():
    tensor = {"name": "image", "shape": [1, 1, 3], "datatype": "UINT8", "data": [0, 0, 0]}
    with pytest.raises(FrameError, match="exactly one"):
        images(wire.parse_request(json.dumps({"inputs": [tensor, tensor]}).encode()))


def test_a_classifier_answers_labels_and_scores_row_by_row():
    answers = [answered(Classified("car", (0.25, 0.75))), answered(Classified("background", (0.5, 0.5)), latency_ms=9)]
    found = wire.response(request(), CARD, answers)
    assert (found.id, found.model_name, found.model_version) == ("7", "cars", "3")
    assert found.parameters == {"fresh": True, "latency_ms": 9, "release": 3}
    outputs = {output.name: output for output in found.outputs}
    assert outputs["label"].data == ["car", "background"]
    assert (outputs["scores"].shape, outputs["scores"].data) == ((2, 2), [0.25, 0.75, 0.5, 0.5])


def test_a_detector_answers_all_boxes_in_a_row_with_a_count_for_each_frame():
    box = Box("car", 0.75, 1.0, 2.0, 30.0, 40.0)
    found = wire.response(request(), DETECTOR, [answered(Detected(())), answered(Detected((box, box)))])
    outputs = {output.name: output for output in found.outputs}
    assert outputs["count"].data == [0, 2]
    assert (outputs["boxes"].shape, outputs["boxes"].data) == ((2, 4), [1, 2, 30, 40] * 2)
    assert outputs["labels"].data == ["car", "car"]
    assert outputs["scores"].data == [0.75, 0.75]


@pytest.mark.parametrize(("card", "answer"), [(CARD, Classified("car", (0.25, 0.75))), (DETECTOR, Detected(()))])
def test_metadata_promises_the_outputs_that_are_given(card, answer):
    promised = wire.metadata(card, 3)
    given_outputs = wire.response(request(), card, [answered(answer)]).outputs
    assert [(form.name, form.datatype) for form in promised.outputs] == [(o.name, o.datatype) for o in given_outputs]
    for form, output in zip(promised.outputs, given_outputs, strict=True):
        assert all(told in (-1, length) for told, length in zip(form.shape, output.shape, strict=True))


def test_only_the_outputs_that_were_asked_for_are_given():
    asked = wire.InferRequest(inputs=request().inputs, outputs=({"name": "label"},))
    wire.check_outputs(asked, CARD)
    assert [o.name for o in wire.response(asked, CARD, [answered(Classified("car", (0.5, 0.5)))]).outputs] == ["label"]


def test_an_unknown_output_is_refused_with_the_nearest_one():
    asked = wire.InferRequest(inputs=request().inputs, outputs=({"name": "score"},))
    with pytest.raises(FrameError, match="did you mean 'scores'"):
        wire.check_outputs(asked, CARD)


def test_a_frame_without_any_answer_is_an_error():
    with pytest.raises(ServingError, match="failed: out of memory"):
        wire.response(request(), CARD, [FrameAnswer("cars", 0, None, False, "failed: out of memory", 1.0, 3)])

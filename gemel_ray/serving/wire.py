"""Open Inference Protocol v2: its messages, and their way to frames and back from answers.

The protocol: https://github.com/kserve/open-inference-protocol, `inference_rest.md`. One input, "image": UINT8,
[H, W, 3] or [N, H, W, 3], RGB; or BYTES, [N], each one a JPEG or PNG, which only binary data can carry (see
binary.py). Outputs of a classifier: "label" (BYTES, [N]) and "scores" (FP32, [N, classes]).
Outputs of a detector, M objects over all frames: "count" (INT32, [N]), "boxes" (FP32, [M, 4]: left, top, width, height
in pixels), "labels" (BYTES, [M]) and "scores" (FP32, [M]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from gemel_ray.serving import binary, json_tensors
from gemel_ray.serving.description import QueryCard
from gemel_ray.serving.pictures import Image, decode_all
from gemel_ray.serving.replies import fits
from gemel_ray.spec.answers import Answer, Classified, Detected, FrameAnswer
from gemel_ray.spec.errors import FrameError, ServingError, nearest
from gemel_ray.spec.strict import Strict, explain

INPUT = "image"
Parameters = dict[str, Any]


class RequestTensor(Strict):
    """An input of a request; `data` is flat in row-major order, or nested; without it, bytes follow the JSON."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters = Field(default_factory=dict)
    data: list[Any] | None = None


class RequestOutput(Strict):
    """An output that is asked for."""

    name: str
    parameters: Parameters = Field(default_factory=dict)


class InferRequest(Strict):
    """The body of POST /v2/models/{query}/infer."""

    id: str | None = None
    parameters: Parameters = Field(default_factory=dict)
    inputs: Annotated[tuple[RequestTensor, ...], Field(min_length=1)]
    outputs: tuple[RequestOutput, ...] = ()


class TensorForm(BaseModel):
    """A tensor as metadata tells it; -1 stands for any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(BaseModel):
    """The body of GET /v2/models/{query}."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorForm, ...]
    outputs: tuple[TensorForm, ...]
    properties: dict[str, str]


class ResponseTensor(TensorForm):
    """An output with its data, flat in row-major order; without them when they follow the JSON as bytes."""

    parameters: Parameters = Field(default_factory=dict)
    data: list[Any] | None


class InferResponse(BaseModel):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters
    outputs: tuple[ResponseTensor, ...]


def metadata(card: QueryCard, release: int) -> ModelMetadata:
    """What a client must know to call one query; the release number is its version."""
    return ModelMetadata(
        name=card.name,
        versions=(str(release),),
        platform=f"gemel_ray_{card.builder}",
        inputs=(TensorForm(name=INPUT, datatype="UINT8", shape=(-1, -1, -1, 3)),),
        outputs=_output_forms(card),
        properties={"classes": ",".join(card.classes), "task": card.task},
    )


def _output_forms(card: QueryCard) -> tuple[TensorForm, ...]:
    if card.task == "classification":
        return (
            TensorForm(name="label", datatype="BYTES", shape=(-1,)),
            TensorForm(name="scores", datatype="FP32", shape=(-1, len(card.classes))),
        )
    return (
        TensorForm(name="count", datatype="INT32", shape=(-1,)),
        TensorForm(name="boxes", datatype="FP32", shape=(-1, 4)),
        TensorForm(name="labels", datatype="BYTES", shape=(-1,)),
        TensorForm(name="scores", datatype="FP32", shape=(-1,)),
    )


def parse_request(body: bytes | memoryview) -> InferRequest:
    """Check the form of a body's JSON; FrameError names the field, the value and the fix."""
    try:
        return InferRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        raise FrameError(f"inference request:\n{explain(error, InferRequest)}") from error


def check_outputs(request: InferRequest, card: QueryCard) -> None:
    """Raise FrameError for an output that the query does not have, or one asked for in a senseless form."""
    binary.flag(request.parameters, "binary_data_output")
    known = [form.name for form in _output_forms(card)]
    for output in request.outputs:
        binary.flag(output.parameters, "binary_data")
        if output.name not in known:
            raise FrameError(f"query {card.name!r} has no output {output.name!r}; {nearest(output.name, known)}")


def images_of(request: InferRequest, behind: binary.Buffer = b"", *, max_frames: int, max_pixels: int) -> list[Image]:
    """The frames of a request, `behind` what follows its JSON; FrameError names what is wrong with its one tensor."""
    tensor = request.inputs[0]
    if len(request.inputs) > 1 or tensor.name != INPUT:
        names = [given.name for given in request.inputs]
        raise FrameError(f"inputs are named {names}; send exactly one, named {INPUT!r}")
    size = binary.size_of(INPUT, tensor.parameters)
    binary.check_behind(size or 0, behind)
    if size is not None and tensor.data is not None:
        raise FrameError(f"input {INPUT!r} has both 'data' and {binary.SIZE!r}; send one of them")
    if tensor.datatype == "BYTES":
        return _pictures(tensor, None if size is None else behind, max_frames, max_pixels)
    return _pixels(tensor, None if size is None else behind, max_frames, max_pixels)


def _pictures(tensor: RequestTensor, data: binary.Buffer | None, max_frames: int, max_pixels: int) -> list[Image]:
    if data is None:
        raise FrameError(f"input {INPUT!r} of BYTES holds pictures, which JSON cannot; send it with {binary.SIZE!r}")
    if len(tensor.shape) != 1 or tensor.shape[0] < 1:
        raise FrameError(f"input {INPUT!r} of BYTES has shape {list(tensor.shape)}; send [N], one JPEG or PNG each")
    _check_count(tensor.shape[0], max_frames)
    return decode_all(binary.elements(INPUT, tensor.shape[0], data), max_pixels=max_pixels)


def _pixels(tensor: RequestTensor, data: binary.Buffer | None, max_frames: int, max_pixels: int) -> list[Image]:
    if tensor.datatype != "UINT8":
        raise FrameError(
            f"input {INPUT!r} has datatype {tensor.datatype!r}; send UINT8, 0 to 255, RGB, or BYTES, JPEG or PNG"
        )
    frames, height, width = _extent(tensor.shape)
    _check_count(frames, max_frames)
    if height * width > max_pixels:
        raise FrameError(f"input {INPUT!r} is {width} x {height} pixels; send at most {max_pixels} a frame")
    values = _values(tensor) if data is None else binary.numbers(INPUT, "UINT8", tensor.shape, data)
    return list(values.reshape(frames, height, width, 3))


def _check_count(frames: int, max_frames: int) -> None:
    if frames > max_frames:
        raise FrameError(f"input {INPUT!r} holds {frames} frames; send at most {max_frames} in one request")


def _extent(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (3, 4) or shape[-1] != 3 or min(shape) < 1:
        raise FrameError(f"input {INPUT!r} has shape {list(shape)}; send [H, W, 3] or [N, H, W, 3], nothing empty")
    frames = shape[0] if len(shape) == 4 else 1
    return frames, shape[-3], shape[-2]


def _values(tensor: RequestTensor) -> Image:
    if tensor.data is None:
        raise FrameError(
            f"input {INPUT!r} has no 'data'; send JSON numbers, or bytes behind the JSON and {binary.SIZE!r}"
        )
    return json_tensors.whole_bytes(INPUT, tensor.shape, tensor.data)


def response(request: InferRequest, card: QueryCard, answers: Sequence[FrameAnswer]) -> InferResponse:
    """The answers as tensors; ServingError when a frame has no answer, not even an earlier one.

    `latency_ms` is that of the slowest frame; `fresh` holds only when every frame had a forward pass of its own.
    """
    found = [_answer(answer, card) for answer in answers]
    tensors = {tensor.name: tensor for tensor in _tensors(found, card)}
    chosen = [output.name for output in request.outputs] or list(tensors)
    return InferResponse(
        model_name=card.name,
        model_version=str(answers[0].release),
        id=request.id,
        parameters={
            "fresh": all(answer.fresh for answer in answers),
            "latency_ms": max(answer.latency_ms for answer in answers),
            "release": answers[0].release,
        },
        outputs=tuple(tensors[name] for name in chosen),
    )


def _answer(answer: FrameAnswer, card: QueryCard) -> Answer:
    if answer.answer is None or not fits(answer.answer, card):
        why = answer.reason or "a release with other classes takes over at the moment"
        raise ServingError(f"query {answer.query!r} did not answer frame {answer.frame}: {why}; send it again")
    return answer.answer


def _tensors(answers: Sequence[Answer], card: QueryCard) -> list[ResponseTensor]:
    classified = [answer for answer in answers if isinstance(answer, Classified)]
    if len(classified) == len(answers):
        return [
            _tensor("label", "BYTES", (len(answers),), [answer.label for answer in classified]),
            _tensor(
                "scores",
                "FP32",
                (len(answers), len(card.classes)),
                [score for answer in classified for score in answer.scores],
            ),
        ]
    return _detections([answer for answer in answers if isinstance(answer, Detected)])


def _detections(answers: Sequence[Detected]) -> list[ResponseTensor]:
    boxes = [box for answer in answers for box in answer.boxes]
    corners = [value for box in boxes for value in (box.x, box.y, box.width, box.height)]
    return [
        _tensor("count", "INT32", (len(answers),), [len(answer.boxes) for answer in answers]),
        _tensor("boxes", "FP32", (len(boxes), 4), corners),
        _tensor("labels", "BYTES", (len(boxes),), [box.label for box in boxes]),
        _tensor("scores", "FP32", (len(boxes),), [box.score for box in boxes]),
    ]


def _tensor(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> ResponseTensor:
    return ResponseTensor(name=name, datatype=datatype, shape=shape, data=data)


def packed(found: InferResponse, request: InferRequest) -> tuple[bytes, int | None]:
    """An answer's body, and how much of it is JSON; None when all of it is. Checked by check_outputs.

    Outputs for which binary data were asked follow the JSON, in the order in which the JSON names them.
    """
    by_default = binary.flag(request.parameters, "binary_data_output") or False
    asked = {output.name: binary.flag(output.parameters, "binary_data") for output in request.outputs}
    chosen = [by_default if asked.get(tensor.name) is None else bool(asked[tensor.name]) for tensor in found.outputs]
    behind = [
        binary.encoded(tensor.datatype, tensor.data or []) if is_binary else None
        for tensor, is_binary in zip(found.outputs, chosen, strict=True)
    ]
    outputs = tuple(map(_told, found.outputs, behind))
    head = found.model_copy(update={"outputs": outputs}).model_dump_json(exclude_none=True).encode()
    if not any(chosen):
        return head, None
    return b"".join((head, *(data for data in behind if data is not None))), len(head)


def _told(tensor: ResponseTensor, data: bytes | None) -> ResponseTensor:
    if data is None:
        return tensor
    return tensor.model_copy(update={"parameters": {binary.SIZE: len(data)}, "data": None})

"""One query's model of a release as a file of its own, for use without gemel_ray."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import nn

from gemel_ray.spec.errors import InputError, ModelError, brief, nearest
from gemel_ray.spec.release import Manifest, ReleasedQuery
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.checkpoints import fit_state, put_state
from gemel_ray.vision.deltas import folded_state, is_corrected
from gemel_ray.vision.models import build_model, task_of
from gemel_ray.vision.tasks import task_for
from gemel_ray.weights.files import Files
from gemel_ray.weights.models import BlobReader, load_state
from gemel_ray.weights.store import Store
from gemel_ray.weights.tensors import decode, encode

Format = Literal["safetensors", "torch", "exported", "onnx"]
Forward = Callable[[Any], Any]

_ENDINGS: dict[str, Format] = {
    ".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".pt2": "exported", ".onnx": "onnx",
}  # fmt: skip
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_STATE_DICTS: tuple[Format, ...] = ("safetensors", "torch")
# Where compilers reorder sums, or corrections were added into weights. Any other state dict computes the very same.
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """What was written, and what the model takes and answers."""

    file: str
    format: str
    release: int
    query: str
    architecture: str
    classes: tuple[str, ...]
    takes: str
    file_bytes: int


def export_query(
    store: Store,
    query: str,
    out: Path,
    *,
    format: Format | None = None,
    release: int | None = None,
    allow_factories: bool = False,
) -> ExportedModel:
    """Write one query's model of a release (HEAD's by default) to a file, in the format that its name ends in.

    What is to be written is loaded again and must answer as the release's model does, or ModelError is raised and
    nothing is written. Raises InputError for a format or a query that does not exist, or that cannot be had here.
    """
    manifest = store.manifest(release)
    if query not in manifest.queries:
        raise InputError(f"release {manifest.release} has no query {query!r}; {nearest(query, manifest.queries)}")
    spec = manifest.queries[query].query.model
    chosen = _chosen(format, out, spec)
    model = _released_model(store, manifest, query, allow_factories)
    data, takes = _WRITERS[chosen](model, spec)
    _check_same(model, _READERS[chosen](data, spec, allow_factories), spec, chosen)
    Files.at(out.parent).write(out.name, data)
    return ExportedModel(
        str(out), chosen, manifest.release, query, spec.builder, spec.classes, takes, file_bytes=len(data)
    )


def _chosen(asked: str | None, out: Path, spec: ModelSpec) -> Format:
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file in it")
    found = asked or _ENDINGS.get(out.suffix)
    if found not in get_args(Format):
        what = f"--format {asked!r} is not known" if asked else f"--out {out}: its ending tells no format"
        raise InputError(f"{what}; choose safetensors, torch, exported or onnx with --format")
    ending = _ENDINGS.get(out.suffix, found)
    if ending != found:
        raise InputError(
            f"--out {out}: ends as files of --format {ending} do, and --format {found} is asked for; leave one out"
        )
    if found in ("exported", "onnx") and task_of(spec) == "detection":
        raise InputError(
            f"--format {found}: {spec.builder} finds a number of boxes that depends on the frame, which no exporter "
            "can trace; choose safetensors or torch"
        )
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None] if found == "onnx" else []
    if missing:
        raise InputError(
            f"--format onnx needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}"
        )
    return cast(Format, found)


def _released_model(store: Store, manifest: Manifest, query: str, allow_factories: bool) -> nn.Module:
    released: ReleasedQuery = manifest.queries[query]
    model = build_model(released.query.model, allow_factories=allow_factories)
    fit_state(
        model,
        load_state(BlobReader(store), released.weights, released.slices),
        source=f"release {manifest.release}, {query}",
    )
    return model


# writers: the file's bytes, and what the model takes


def _write_safetensors(model: nn.Module, spec: ModelSpec) -> tuple[bytes, str]:
    return encode(folded_state(model)), _taken(spec)


def _write_torch(model: nn.Module, spec: ModelSpec) -> tuple[bytes, str]:
    file, state = io.BytesIO(), folded_state(model)
    for name, tensor in state.items():
        # Tensors that are parts of a larger one would be saved with all of it.
        state[name] = tensor.clone()
    torch.save(state, file)
    return file.getvalue(), _taken(spec)


def _write_exported(model: nn.Module, spec: ModelSpec) -> tuple[bytes, str]:
    program, takes = _traced(model, spec, torch.export.export)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue(), takes


def _write_onnx(model: nn.Module, spec: ModelSpec) -> tuple[bytes, str]:
    def export(*given: Any, **more: Any) -> Any:  # noqa: ANN401 - two exporters, one form
        return torch.onnx.export(
            *given, **more, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
        )

    program, takes = _traced(model, spec, export)
    return program.model_proto.SerializeToString(), takes


def _traced(model: nn.Module, spec: ModelSpec, export: Callable[..., Any]) -> tuple[Any, str]:
    """The model traced for batches of any size, else of one image, where it does not allow for others."""
    attempts: tuple[tuple[int, Any], ...] = ((2, ({0: torch.export.Dim("batch", min=1)},)), (1, None))
    reasons = []
    for images, shapes in attempts:
        try:
            # On failure torch prints the whole graph.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                program = export(model, (_probe(spec, images),), dynamic_shapes=shapes)
        except Exception as error:  # whatever a user's own model raises while it is traced
            reasons.append(brief(error))
        else:
            return program, _taken(spec, None if shapes else images)
    raise ModelError(f"{spec.builder}: cannot be traced ({reasons[-1]}); choose --format safetensors or torch")


# readers: the bytes as something that computes


def _read_safetensors(data: bytes, spec: ModelSpec, allow_factories: bool) -> Forward:
    model = build_model(spec, allow_factories=allow_factories)
    put_state(model, decode(data))
    return model


def _read_torch(data: bytes, spec: ModelSpec, allow_factories: bool) -> Forward:
    model = build_model(spec, allow_factories=allow_factories)
    model.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
    return model


def _read_exported(data: bytes, spec: ModelSpec, allow_factories: bool) -> Forward:
    return cast(Forward, torch.export.load(io.BytesIO(data)).module())


def _read_onnx(data: bytes, spec: ModelSpec, allow_factories: bool) -> Forward:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


_WRITERS: dict[Format, Callable[[nn.Module, ModelSpec], tuple[bytes, str]]] = {
    "safetensors": _write_safetensors, "torch": _write_torch, "exported": _write_exported, "onnx": _write_onnx,
}  # fmt: skip
_READERS: dict[Format, Callable[[bytes, ModelSpec, bool], Forward]] = {
    "safetensors": _read_safetensors, "torch": _read_torch, "exported": _read_exported, "onnx": _read_onnx,
}  # fmt: skip


# the check


def _check_same(model: nn.Module, again: Forward, spec: ModelSpec, format: Format) -> None:
    """Raise ModelError unless both answer the same to frames of noise, and a state dict came back bit for bit."""
    is_folded = format in _STATE_DICTS and is_corrected(model)
    # Rounding may tip a detector's box over its threshold.
    same = (is_folded and task_of(spec) == "detection") or _answer_alike(model, again, spec, format, is_folded)
    if format in _STATE_DICTS:
        # Noise may hold no detection at all; the weights themselves tell more.
        read = cast(nn.Module, again).state_dict()
        same = same and all(torch.equal(read[name], tensor) for name, tensor in folded_state(model).items())
    if not same:
        raise ModelError(
            f"{spec.builder}: what was read back answers otherwise than the release's model; nothing was written. "
            "Choose another --format"
        )


def _answer_alike(model: nn.Module, again: Forward, spec: ModelSpec, format: Format, is_folded: bool) -> bool:
    tolerance = 0.0 if format in _STATE_DICTS and not is_folded else _TOLERANCE
    probe = _probe(spec, 1)
    with torch.inference_mode():
        pairs = zip(_tensors(model(probe)), _tensors(again(probe)), strict=True)
        return all(
            one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
            for one, other in pairs
        )


def _probe(spec: ModelSpec, images: int) -> Any:  # noqa: ANN401 - whatever the task's models take
    noise = np.random.default_rng(0).integers(0, 256, (images, spec.input_size, spec.input_size, 3), dtype=np.uint8)
    return task_for(spec).prepare(list(noise))


def _tensors(output: Any) -> Iterable[torch.Tensor]:  # noqa: ANN401
    """All tensors of an output, in order: logits, or detections as a list of mappings."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in _tensors(part)]


def _taken(spec: ModelSpec, images: int | None = None) -> str:
    if task_of(spec) == "detection":
        return "a list of float32 images 3 x H x W, RGB in 0..1"
    batch = "N" if images is None else str(images)
    side = spec.input_size
    return f"float32 {batch} x 3 x {side} x {side}, RGB, normalised with ImageNet's mean and deviation"

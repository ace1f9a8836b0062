"""State dicts from files, whatever wrapper they come in, fitted to a model strictly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from gemel_ray.spec.errors import ModelError, nearest
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.deltas import attach_deltas

StateDict = dict[str, torch.Tensor]

# Wrappers that training frameworks put around a state dict, and prefixes they put before its names.
_NESTS = ("state_dict", "model_state_dict", "model", "net", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")


def load_weights(model: nn.Module, spec: ModelSpec) -> None:
    """Load the weights a model spec names. Raises ModelError that names the file, the tensor, and both shapes."""
    if spec.weights is None:
        raise ModelError(f"{spec.builder}: has no 'weights'; name a file, or train one with `gemel originals`")
    if "://" in spec.weights:
        raise ModelError(f"{spec.weights}: 'weights' must be a local file; download it and name the file here")
    published = spec.weights.startswith("torchvision:")
    state = _torchvision_state(spec) if published else read_state(Path(spec.weights))
    fit_state(model, state, source=spec.weights)


def read_state(path: Path) -> StateDict:
    """The tensors of a .safetensors file or of a torch state dict (read with weights_only=True).

    Raises ModelError for a file that is absent, damaged, not allowed to be read, or of another kind.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file; correct the path, or train originals with `gemel originals`")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror or error}); check the disk and its permissions"
        ) from error
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path}: is damaged or not a safetensors file ({error})") from error
    except Exception as error:  # bytes of any other kind make the unpickler raise whatever they mean to it
        # torch's own message advises to read the file with weights_only=False, which runs the code in it.
        raise ModelError(
            f"{path}: is no plain state dict, or damaged; save model.state_dict(), not the model, with torch.save or "
            "safetensors"
        ) from error
    return _unwrap(loaded, path)


def _unwrap(loaded: object, path: Path) -> StateDict:
    while isinstance(loaded, Mapping):
        nest = next((name for name in _NESTS if isinstance(loaded.get(name), Mapping)), None)
        if nest is None:
            tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
            if tensors:
                return tensors
            break
        loaded = loaded[nest]
    raise ModelError(f"{path}: holds no state dict; save model.state_dict() with torch.save or safetensors")


def fit_state(model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Load a state dict into a model, strictly, after removing wrapper prefixes.

    Shape conflicts, missing or surplus names and values that are not finite raise ModelError with the first of each.
    """
    state = _without_prefix(state, model.state_dict())
    attach_deltas(model, {name: tuple(tensor.shape) for name, tensor in state.items()})
    own = model.state_dict()
    # A tied weight may be written once, as safetensors does. Counters of batches seen are absent from old checkpoints
    # and never change an answer.
    kept = model.state_dict(keep_vars=True)
    given = {id(kept[name]) for name in state if name in kept}
    missing = [name for name in own if id(kept[name]) not in given and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in own]
    if missing or surplus:
        raise ModelError(f"{source}: does not fit {type(model).__name__}: {_misfit(missing, surplus, own)}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ModelError(
                f"{source}: tensor {name!r} has shape {tuple(tensor.shape)}, the model needs {tuple(own[name].shape)}; "
                "check 'architecture', 'options' and the number of 'classes'"
            )
    _check_finite(state, own, source)
    put_state(model, state, strict=False)


def _check_finite(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise ModelError for what was finite when the model was built: a mask of -inf, say, may stay one.

    Such a model answers the same whatever it shares, so that a search would pass and release it.
    """
    for name, tensor in state.items():
        if not _is_finite(tensor) and _is_finite(own[name]):
            raise ModelError(
                f"{source}: tensor {name!r} holds NaN or infinite values; take a checkpoint from before its training "
                "diverged, or train an original with `gemel originals`"
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    # As float32, since torch cannot ask this of every smaller type.
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def put_state(model: nn.Module, state: Mapping[str, torch.Tensor], *, strict: bool = True) -> None:
    """Copy a state dict into a model, as `load_state_dict` does, with the private corrections it may bring.

    MNASNet, for one, refuses a state dict without the versions that torch keeps beside it and safetensors do not.
    """
    attach_deltas(model, {name: tuple(tensor.shape) for name, tensor in state.items()})
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=strict)


def _misfit(missing: list[str], surplus: list[str], own: Mapping[str, torch.Tensor]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing, first {missing[0]!r}")
    if surplus:
        parts.append(f"{len(surplus)} are unknown, first {surplus[0]!r} ({nearest(surplus[0], own)})")
    return "; ".join(parts) + "; check 'architecture' and 'options'"


def _without_prefix(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Strip wrapper prefixes as long as that brings the names nearer to the model's."""
    current = dict(state)
    for _ in range(len(_PREFIXES)):
        prefix = next((p for p in _PREFIXES if current and all(name.startswith(p) for name in current)), None)
        if prefix is None or any(name in own for name in current):
            break
        current = {name.removeprefix(prefix): tensor for name, tensor in current.items()}
    return current


def _torchvision_state(spec: ModelSpec) -> StateDict:
    name = (spec.weights or "").partition(":")[2]
    try:
        known = torchvision.models.get_model_weights(spec.architecture)
    except ValueError as error:
        raise ModelError(f"{spec.builder}: torchvision publishes no weights for it; name a file instead") from error
    member = name.rpartition(".")[2]
    if member not in known.__members__:
        raise ModelError(f"{spec.builder}: no torchvision weights {name!r}; {nearest(member, known.__members__)}")
    try:
        return dict(known[member].get_state_dict(progress=False))
    except OSError as error:
        raise ModelError(
            f"{spec.weights}: cannot be fetched ({error}); it needs internet access, or download the file "
            f"{known[member].url} elsewhere and name it under 'weights'"
        ) from error

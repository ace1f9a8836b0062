"""Building a query's model by name or by the user's own factory."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torchvision
from torch import nn
from torch.nn.parameter import is_lazy

from gemel_ray.spec.errors import ModelError, brief, nearest
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.detector_frames import take_frames
from gemel_ray.vision.slim import SLIM_BUILDERS
from gemel_ray.vision.slim_detectors import SLIM_DETECTORS

Builder = Callable[..., nn.Module]
TaskName = Literal["classification", "detection"]

# These two initialise slowly (truncated normal by scipy's method) and carry auxiliary heads used in training alone.
_AUXILIARY = frozenset({"googlenet", "inception_v3"})


class BuilderError(ModelError):
    """A builder, or the user's own factory, raised."""


def training_device() -> torch.device:
    """Where models are trained and originals are asked: CUDA where this process may use it, as Ray grants it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def architectures(task: TaskName) -> frozenset[str]:
    """Names that `architecture` may take for a task."""
    if task == "detection":
        return frozenset(torchvision.models.list_models(module=torchvision.models.detection)) | SLIM_DETECTORS.keys()
    return frozenset(torchvision.models.list_models(module=torchvision.models)) | SLIM_BUILDERS.keys()


def task_of(spec: ModelSpec) -> TaskName:
    """What a model answers; ModelError names the nearest architecture when there is none of that name."""
    if spec.factory is not None:
        assert spec.task is not None, "the workload's own check demands a task beside a factory"
        return spec.task
    found = _task_by_name(spec.architecture or "")
    if spec.task not in (None, found):
        raise ModelError(f"architecture {spec.architecture!r} is for {found}, but task says {spec.task!r}; drop 'task'")
    return found


def _task_by_name(name: str) -> TaskName:
    for task in ("classification", "detection"):
        if name in architectures(task):
            return task
    known = architectures("classification") | architectures("detection")
    raise ModelError(
        f"unknown architecture {name!r}; {nearest(name, known)} Any torchvision classification or detection builder "
        "will do, or give your own as 'factory: pkg.module:function'"
    )


def build_model(spec: ModelSpec, *, allow_factories: bool = False) -> nn.Module:
    """The model in evaluation mode, its weights as initialised. Follows torch's default device (meta included).

    Raises ModelError for an unknown architecture, one of another task, a factory that is not allowed or not found;
    BuilderError where the builder itself does: for wrong options, or because it cannot work on the meta device.
    """
    builder = _factory(spec.factory, allow_factories) if spec.factory else _builder(spec)
    options = {**spec.options, "num_classes": len(spec.classes)}
    try:
        model = builder(**options)
    except Exception as error:  # whatever a builder, or the user's own, runs into with wrong options
        raise BuilderError(f"{spec.builder}: cannot be built with options {spec.options} ({brief(error)})") from error
    _check_built(model, spec)
    if task_of(spec) == "detection":
        take_frames(model)
    return model.eval()


def _check_built(model: object, spec: ModelSpec) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"factory {spec.factory} returned {type(model).__name__}, not a torch.nn.Module")
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ModelError(
            f"{spec.builder}: {lazy[0]!r} has no shape before the model is called (a Lazy layer); give its layer all "
            "sizes, or call the model once in the factory"
        )
    empty = [name for name, parameter in model.named_parameters() if 0 in parameter.shape]
    if empty:
        raise ModelError(f"{spec.builder}: options {spec.options} leave {empty[0]!r} without a single weight")
    if spec.factory is None:
        _check_options(model, spec)


def _check_options(model: nn.Module, spec: ModelSpec) -> None:
    """Text where the model's class takes a number fails late, such as when a detector finds its first objects."""
    known = inspect.signature(type(model)).parameters
    for name, value in spec.options.items():
        if isinstance(value, str) and name in known and type(known[name].default) in (int, float):
            raise ModelError(f"{spec.builder}: options: {name!r} must be a number, got {value!r}")


def _builder(spec: ModelSpec) -> Builder:
    name, task = spec.architecture or "", task_of(spec)
    slim: dict[str, Builder] = {**SLIM_BUILDERS, **SLIM_DETECTORS}
    if name in slim:
        return slim[name]
    fixed: dict[str, Any] = {"weights": None}
    if task == "detection":
        fixed["weights_backbone"] = None
    if name in _AUXILIARY:
        fixed |= {"init_weights": False, "aux_logits": False}
    builder = torchvision.models.get_model_builder(name)
    return lambda **options: builder(**(fixed | options))


def _factory(path: str, allowed: bool) -> Builder:
    if not allowed:
        raise ModelError(f"factory {path!r} runs code of its own; allow that with --allow-factories if you trust it")
    module_name, _, function_name = path.partition(":")
    try:
        # Tensors that the module makes as it is imported serve all models later, those with weights too.
        with torch.device("cpu"):
            found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"factory {path!r} cannot be found ({error}); is its package installed here?") from error
    except (Exception, SystemExit) as error:  # whatever the user's own module runs into
        raise ModelError(f"factory {path!r}: importing {module_name} fails ({brief(error)}); correct it") from error
    if not callable(found):
        raise ModelError(f"factory {path!r} is {type(found).__name__}, not a function")
    return found

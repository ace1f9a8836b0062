"""What a model is made of, read on the meta device: no weights are allocated where the builder allows for that."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import get_args

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gemel_ray.policy.grouping import Analysis, Rule, group_layers
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.layers import Layer, ModelInventory, Tensor
from gemel_ray.spec.workload import ModelSpec, Workload
from gemel_ray.vision.deltas import rank_bytes
from gemel_ray.vision.models import BuilderError, build_model

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTION_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding")


def analyze(workload: Workload, *, rule: Rule = "exact", allow_factories: bool = False) -> Analysis:
    """What the models of a workload could share. Nothing is allocated; equal architectures are inspected once.

    Raises InputError for a rule that is not there, and what build_model raises.
    """
    if rule not in get_args(Rule):
        raise InputError(f"--rule {rule!r} is not a signature rule; choose exact or shape")
    seen: dict[str, ModelInventory] = {}
    inventories = []
    for query in workload.queries:
        key = json.dumps(query.model.model_dump(exclude={"weights", "input_size"}), sort_keys=True)
        if key not in seen:
            seen[key] = inspect_spec(query.name, query.model, allow_factories=allow_factories)
        found = seen[key]
        inventories.append(ModelInventory(query.name, found.builder, found.layers, found.other_bytes))
    return Analysis(rule, tuple(inventories), group_layers(inventories, rule))


def inspect_spec(query: str, spec: ModelSpec, *, allow_factories: bool = False) -> ModelInventory:
    """The inventory of one query's model, built without weights if that can be."""
    return inspect_model(query, build_weightless(spec, allow_factories=allow_factories), builder=spec.builder)


def build_weightless(spec: ModelSpec, *, allow_factories: bool = False) -> nn.Module:
    """The model on the meta device; where its builder cannot work there, as it is built anywhere.

    Some builders compute with tensors while they build (RegNet's stage widths), which meta tensors cannot; users' own
    put parts on the CPU or load them. What raises for another reason raises in the end too. As `build_model` raises.
    """
    for lightened in (torch.device("meta"), _parameters_on_meta()):
        with contextlib.suppress(BuilderError), lightened:
            return build_model(spec, allow_factories=allow_factories)
    return build_model(spec, allow_factories=allow_factories)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Put each parameter on the meta device as its module takes it, before its memory is touched."""

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
        # One that is there already may be tied to another module's on purpose.
        return (
            parameter
            if parameter.is_meta
            else nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        )

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type] # its stub forgets the result
    try:
        yield
    finally:
        hook.remove()


def inspect_model(query: str, model: nn.Module, *, builder: str) -> ModelInventory:
    """The inventory of a model at hand, its weight-bearing layers in order of appearance."""
    layers = tuple(_layers(model))
    everything = sum(_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))
    return ModelInventory(query, builder, layers, everything - sum(layer.bytes for layer in layers))


def _layers(model: nn.Module) -> Iterator[Layer]:
    claimed: set[int] = set()
    for path, module in model.named_modules():
        names = shareable_names(module)
        parameters = {name: module.get_parameter(name) for name in names}
        # A model may tie a weight within itself already; it is one layer, where it appears first.
        if not names or any(id(parameter) in claimed for parameter in parameters.values()):
            continue
        claimed.update(id(parameter) for parameter in parameters.values())
        tensors = tuple(Tensor(name, tuple(p.shape), _bytes(p)) for name, p in parameters.items())
        yield Layer(path, _kind(module), _exact(module, tensors), _shape(module, tensors), tensors, rank_bytes(module))


def shareable_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that make a module one weight-bearing layer; empty for all other modules.

    The projections of nn.MultiheadAttention are plain parameters of it, not modules; its output projection is a
    Linear of its own. A weight that is computed anew from others (weight_norm, spectral_norm) is private, with all of
    its module.
    """
    if isinstance(module, nn.MultiheadAttention):
        wanted: tuple[str, ...] = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    elif isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        wanted = ("weight", "bias") if isinstance(getattr(module, "weight", None), nn.Parameter) else ()
    else:
        return ()
    return tuple(name for name in wanted if isinstance(getattr(module, name, None), nn.Parameter))


def _kind(module: nn.Module) -> str:
    known = (nn.Linear, nn.MultiheadAttention, *_CONVOLUTIONS)
    return next(base.__name__ for base in known if isinstance(module, base))


def _exact(module: nn.Module, tensors: tuple[Tensor, ...]) -> str:
    """Type, weight shapes and every setting that changes what the layer computes (GEMEL section 4.1)."""
    settings = [f"{name}={_plain(getattr(module, name))}" for name in _CONVOLUTION_SETTINGS if hasattr(module, name)]
    if isinstance(module, nn.MultiheadAttention):
        settings.append(f"heads={module.num_heads}")
    return f"{_shape(module, tensors)} {' '.join(settings)}".strip()


def _shape(module: nn.Module, tensors: tuple[Tensor, ...]) -> str:
    shapes = " ".join(f"{tensor.name}={'x'.join(map(str, tensor.shape))}" for tensor in tensors)
    return f"{_kind(module)} {shapes}"


def _plain(setting: object) -> str:
    if isinstance(setting, tuple):
        return "x".join(map(str, setting))
    return str(setting)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()

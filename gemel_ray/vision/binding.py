"""Binding: several layers, one Parameter object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from gemel_ray.spec.errors import ModelError
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import Start
from gemel_ray.vision.deltas import correct, effective_weight
from gemel_ray.vision.inspection import shareable_names

Models = Mapping[str, nn.Module]


def bind(models: Models, configuration: MergeConfiguration, *, start: Start = "mean") -> None:
    """Make the members of every shared layer hold one and the same Parameter objects, tied on purpose.

    They start from the members' mean (what merging.md found best; `alignment.align` comes before, where wanted) or from
    the first member's weights (the paper).
    Members that are bound already count once in the mean. Where the layer has a rank, each member gets the private
    correction that brings it nearest to what it was. Raises ModelError for a layer that does not exist or
    does not fit the others.
    """
    for layer in configuration.shared:
        modules = [module_at(models, member) for member in layer.members]
        wanted = [effective_weight(module) for module in modules] if layer.rank else []
        for name in _common_names(layer.members, modules):
            _tie(layer.members, modules, name, start)
        for module, weight in zip(modules, wanted, strict=False):
            correct(module, weight, layer.rank)


def _tie(members: Sequence[LayerRef], modules: Sequence[nn.Module], name: str, start: Start) -> None:
    parameters = [module.get_parameter(name) for module in modules]
    if len({tuple(parameter.shape) for parameter in parameters}) > 1:
        shapes = {str(member): tuple(p.shape) for member, p in zip(members, parameters, strict=True)}
        raise ModelError(f"layers cannot share '{name}': shapes differ, {shapes}; share layers of one signature only")
    shared = parameters[0]
    if start != "member":
        distinct = list({id(parameter): parameter for parameter in parameters}.values())
        with torch.no_grad():
            shared.copy_(torch.stack([parameter.detach() for parameter in distinct]).mean(dim=0))
    for module in modules:
        module.register_parameter(name, shared)


def _common_names(members: Sequence[LayerRef], modules: Sequence[nn.Module]) -> tuple[str, ...]:
    names = [shareable_names(module) for module in modules]
    for member, found in zip(members, names, strict=True):
        if not found or found != names[0]:
            raise ModelError(f"{member} has weights {found}, {members[0]} has {names[0]}; they cannot be shared")
    return names[0]


def module_at(models: Models, ref: LayerRef) -> nn.Module:
    """The module a layer reference names."""
    try:
        return models[ref.query].get_submodule(ref.layer)
    except (KeyError, AttributeError) as error:
        raise ModelError(f"there is no layer {ref}; was the workload changed since the release?") from error


def layer_tensors(models: Models, configuration: MergeConfiguration) -> dict[LayerRef, tuple[str, ...]]:
    """The short tensor names of every shared member, as the store needs them."""
    members = (member for layer in configuration.shared for member in layer.members)
    return {member: shareable_names(module_at(models, member)) for member in members}


def distinct_parameters(models: Iterable[nn.Module]) -> list[nn.Parameter]:
    """All parameters of the models, shared ones once."""
    found = {id(parameter): parameter for model in models for parameter in model.parameters()}
    return list(found.values())


def distinct_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of all parameters and buffers of the models, shared ones once."""
    tensors = {id(t): t for model in models for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

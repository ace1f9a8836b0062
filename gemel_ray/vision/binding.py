"""Binding: several layers, one Parameter object; or slices of it, where layers of different sizes share one copy.

A slice is a Parameter of its own over the first rows, columns ... of the copy's memory. It is not trained itself: what
its gradient says is added to the copy's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from gemel_ray.spec.errors import ModelError
from gemel_ray.spec.layers import LayerRef, covers
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import Start
from gemel_ray.vision.deltas import correct, effective_weight
from gemel_ray.vision.inspection import shareable_names
from gemel_ray.weights.tensors import narrowed

Models = Mapping[str, nn.Module]


def bind(models: Models, configuration: MergeConfiguration, *, start: Start = "mean") -> None:
    """Make the members of every shared layer hold one and the same Parameter objects, tied on purpose; smaller members
    hold slices of the largest's.

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
    shared = max(parameters, key=torch.Tensor.numel)
    if not all(covers(shared.shape, parameter.shape) for parameter in parameters):
        shapes = {str(member): tuple(p.shape) for member, p in zip(members, parameters, strict=True)}
        raise ModelError(f"layers cannot share '{name}': {shapes} are not all slices of the largest; share others")
    if start != "member":
        with torch.no_grad():
            shared.copy_(_mean(_distinct(parameters), shared))
    slices = {tuple(parameter.shape): _slice(shared, parameter) for parameter in parameters}
    for module, parameter in zip(modules, parameters, strict=True):
        module.register_parameter(name, slices[tuple(parameter.shape)])


def _slice(shared: nn.Parameter, like: nn.Parameter) -> nn.Parameter:
    """The shared Parameter itself, or one over the part of its memory that has the other's shape."""
    if shared.shape == like.shape:
        return shared
    return nn.Parameter(narrowed(shared.detach(), like.shape), requires_grad=shared.requires_grad)


def _mean(parameters: Sequence[nn.Parameter], whole: nn.Parameter) -> torch.Tensor:
    """Of every entry, the mean of those that have it."""
    if all(parameter.shape == whole.shape for parameter in parameters):
        return torch.stack([parameter.detach() for parameter in parameters]).mean(dim=0)
    total, count = torch.zeros_like(whole), torch.zeros_like(whole)
    for parameter in parameters:
        narrowed(total, parameter.shape).add_(parameter.detach())
        narrowed(count, parameter.shape).add_(1)
    return total / count


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
    """All parameters of the models, shared ones once; the whole of what is shared in slices."""
    return _distinct(parameter for model in models for parameter in model.parameters())


def distinct_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of all parameters and buffers of the models, shared ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct_tensors(models))


def distinct_tensors(models: Iterable[nn.Module]) -> list[torch.Tensor]:
    """All parameters and buffers of the models, shared ones once; the whole of what is shared in slices."""
    return _distinct(tensor for model in models for tensor in (*model.parameters(), *model.buffers()))


def slices_of(models: Iterable[nn.Module]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Every slice with the whole that it is a part of."""
    every = list({id(p): p for model in models for p in model.parameters()}.values())
    wholes = {_place(parameter): parameter for parameter in _distinct(every)}
    return [(part, wholes[_place(part)]) for part in every if part is not wholes[_place(part)]]


def gather_gradients(slices: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Add what the slices' gradients say to those of the wholes, and forget it there."""
    for part, whole in slices:
        if part.grad is None:
            continue
        if whole.grad is None:
            whole.grad = torch.zeros_like(whole)
        narrowed(whole.grad, part.shape).add_(part.grad)
        part.grad = None


TensorT = TypeVar("TensorT", bound=torch.Tensor)


def _distinct(tensors: Iterable[TensorT]) -> list[TensorT]:
    """Each tensor once; of those that begin at one place, slices of a whole, the largest."""
    found: dict[int, TensorT] = {}
    for tensor in tensors:
        place = _place(tensor)
        if place not in found or tensor.numel() > found[place].numel():
            found[place] = tensor
    return list(found.values())


def _place(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins. What has none, being empty or on the meta device, is itself alone."""
    return tensor.data_ptr() or -id(tensor)

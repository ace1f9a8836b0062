"""Private corrections to shared weights: what a layer that resists sharing keeps for itself, in few bytes.

A member's weight is then the shared one plus a product of two thin matrices (Hu et al., LoRA, 2021), computed beside
the shared layer and never added into it, so that one copy still serves all members. Started from the best such
approximation of what sharing takes away, rank 8 lifts hard groups from .65 to .90 without training (merging.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from gemel_ray.spec.errors import ModelError

# The two layers that a corrected layer carries: from its inputs to `rank` channels, and from these to its outputs.
CORRECTION = _DOWN, _UP = "delta_down", "delta_up"
_SUFFIX = f".{_DOWN}.weight"


def rank_bytes(module: nn.Module) -> int:
    """Bytes of a correction of rank 1; 0 for layers that cannot have one (grouped and transposed convolutions)."""
    if not _can_have(module):
        return 0
    weight = module.get_parameter("weight")
    return (weight.shape[0] + weight[0].numel()) * weight.element_size()


def _can_have(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1)


def effective_weight(module: nn.Module) -> torch.Tensor:
    """A copy of a layer's weight with its correction, where it has one, added in."""
    weight = module.get_parameter("weight").detach().clone()
    if hasattr(module, _UP):
        up, down = (module.get_parameter(f"{name}.weight").detach() for name in (_UP, _DOWN))
        weight += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return weight


def is_corrected(model: nn.Module) -> bool:
    """Whether any of its layers carries a correction."""
    return any(hasattr(module, _UP) for module in model.modules())


def folded_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the model as it was built: corrections are added into the weights that they correct."""
    state: dict[str, torch.Tensor] = model.state_dict()
    for path, module in model.named_modules():
        if hasattr(module, _UP):
            state[f"{path}.weight"] = effective_weight(module)
            for name in CORRECTION:
                del state[f"{path}.{name}.weight"]
    return state


@torch.no_grad()
def correct(module: nn.Module, wanted: torch.Tensor, rank: int) -> None:
    """Give a layer the correction of that rank which brings it nearest to a wanted weight (truncated SVD).

    What a small layer has no rank for stays zero.
    """
    residual = (wanted - module.get_parameter("weight")).flatten(1)
    left, values, right = torch.linalg.svd(residual.float(), full_matrices=False)
    _attach(module, rank)
    scale = values[:rank].sqrt()
    up, down = module.get_parameter(f"{_UP}.weight").zero_(), module.get_parameter(f"{_DOWN}.weight").zero_()
    up.flatten(1)[:, : len(scale)].copy_(left[:, :rank] * scale)
    down.flatten(1)[: len(scale)].copy_(scale[:, None] * right[:rank])


def attach_deltas(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give a model room for the corrections that a state dict (names and shapes) brings.

    Raises ModelError where it brings one for a layer that cannot have it.
    """
    for name, shape in shapes.items():
        if name.endswith(_SUFFIX):
            path = name.removesuffix(_SUFFIX)
            module = dict(model.named_modules()).get(path)
            if module is None or not _can_have(module):
                raise ModelError(f"{name}: there is no layer {path!r} that could be corrected; was the model changed?")
            _attach(module, shape[0])


def _attach(module: nn.Module, rank: int) -> None:
    weight = module.get_parameter("weight")
    if hasattr(module, _UP):
        if module.get_parameter(f"{_DOWN}.weight").shape[0] == rank:
            return
    else:
        module.register_forward_hook(_add)
    down, up = _thin(module, rank)
    module.add_module(_DOWN, down.to(weight.device, weight.dtype))
    module.add_module(_UP, up.to(weight.device, weight.dtype))


def _thin(module: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:
    """Two layers that together have the module's inputs and outputs, `rank` channels wide between them."""
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, rank, bias=False), nn.Linear(rank, module.out_features, bias=False)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Conv1d
    down = kind(
        module.in_channels,
        rank,
        module.kernel_size,  # type: ignore[arg-type] # of the same number of dimensions
        stride=module.stride,  # type: ignore[arg-type]
        padding=module.padding,  # type: ignore[arg-type]
        dilation=module.dilation,  # type: ignore[arg-type]
        padding_mode=module.padding_mode,
        bias=False,
    )
    return down, kind(rank, module.out_channels, 1, bias=False)


def _add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    corrected: torch.Tensor = output + module.get_submodule(_UP)(module.get_submodule(_DOWN)(inputs[0]))
    return corrected

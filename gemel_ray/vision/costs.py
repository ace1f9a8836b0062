"""What one frame costs a model, counted on the meta device: for profiles of devices that are not at hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gemel_ray.policy.estimates import ModelCost
from gemel_ray.spec.errors import InputError, brief
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.inspection import build_weightless
from gemel_ray.vision.models import task_of


def model_cost(spec: ModelSpec, *, allow_factories: bool = False) -> ModelCost:
    """FLOPs and bytes of one frame through a classifier, without its weights.

    Raises InputError for detectors, whose work depends on what they see, and for a model that cannot be followed
    without values; and as `build_model` does.
    """
    if task_of(spec) != "classification":
        raise InputError(f"{spec.builder}: a detector's cost depends on the frame; measure it with `gemel profile`")
    model = build_weightless(spec, allow_factories=allow_factories)
    # Tied weights, counted once here, are several on another device.
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    outputs = _OutputBytes(model.to("meta"))
    try:
        with FlopCounterMode(display=False) as counter, torch.inference_mode(), torch.device("meta"):
            model(torch.empty(1, 3, spec.input_size, spec.input_size))
    except Exception as error:  # whatever a user's own model does with the values it sees
        raise InputError(
            f"{spec.builder}: its cost cannot be counted without weights ({brief(error)}); measure it with "
            "`gemel profile`"
        ) from error
    # A layer's output is written once and read once; its input and output are alive together.
    return ModelCost(float(counter.get_total_flops()), weights, 2 * outputs.total, 2 * outputs.largest)


class _OutputBytes:
    """Bytes of all outputs of a model's innermost modules, and of the largest."""

    def __init__(self, model: nn.Module) -> None:
        self.total, self.largest = 0, 0
        for module in model.modules():
            if next(module.children(), None) is None:
                module.register_forward_hook(self._see)

    def _see(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            self.total += output.nbytes
            self.largest = max(self.largest, output.nbytes)

"""Which channels of a model may change places without changing what it answers, read off its graph.

A convolution's output channels may be permuted if all that follows until the next convolution works channel by channel
and the next one's input channels are permuted alike (Ainsworth et al., Git Re-Basin, 2022, section 3). The graph is
traced with torch.fx, so any traceable model is covered: ResNets, VGG, MobileNets with squeeze and excitation. Where
an operation is not known to keep channels apart (concatenation, reshaping, attention), the channels it sees stay put.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from gemel_ray.policy.ties import Ties
from gemel_ray.vision.deltas import CORRECTION

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHANNELWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.ELU,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_CHANNELWISE_FUNCTIONS = frozenset(
    {
        functional.relu, functional.relu6, functional.hardswish, functional.silu, functional.gelu, torch.relu,
        torch.sigmoid, functional.dropout, functional.adaptive_avg_pool2d, functional.avg_pool2d,
        functional.max_pool2d,
    }
)  # fmt: skip
_CHANNELWISE_METHODS = frozenset({"relu", "relu_", "sigmoid", "contiguous", "clone"})
_JOINING = frozenset({operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul})
# The space of everything that must not be permuted: pictures, answers, and what unknown operations see.
FIXED = -1


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of one tensor of the state dict, running over a space's channels.

    `repeat` consecutive entries belong to each channel: the places of a feature map that was flattened.
    """

    tensor: str
    dimension: int
    repeat: int = 1


@dataclass(frozen=True, slots=True)
class Space:
    """Channels that may be permuted together: every one of the axes, by the same permutation."""

    size: int
    axes: tuple[Axis, ...]


def permutable_spaces(model: nn.Module) -> tuple[Space, ...]:
    """All spaces of a model, in order of appearance; none for a model that torch.fx cannot trace."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # tracing runs the model's own code, which may raise anything
        return ()
    return _Walk(model).spaces(graph)


class _Walk:
    """Follows the channels through the graph."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ties: Ties[int] = Ties()
        self._sizes: dict[int, int] = {}
        self._axes: dict[int, list[Axis]] = defaultdict(list)
        self._space_of: dict[fx.Node, int] = {}
        # Modules seen already: one that is called twice gives out the same channels twice.
        self._output_of: dict[str, int] = {}

    def spaces(self, graph: fx.Graph) -> tuple[Space, ...]:
        for node in graph.nodes:
            self._space_of[node] = self._after(node)
        return tuple(self._found())

    def _found(self) -> Iterator[Space]:
        for members in self._ties.sets():
            if FIXED in members:
                continue
            sizes = {self._sizes[space] for space in members}
            axes = dict.fromkeys(axis for space in members for axis in self._axes[space])
            if len(sizes) == 1 and axes:
                yield Space(sizes.pop(), tuple(axes))

    def _after(self, node: fx.Node) -> int:
        """The space of a node's result."""
        if node.op == "call_module":
            return self._after_module(node, self._model.get_submodule(str(node.target)))
        if _keeps_channels(node) and node.all_input_nodes:
            return self._space_of[node.all_input_nodes[0]]
        if node.op == "call_function" and node.target in _JOINING and len(node.all_input_nodes) == 2:
            one, other = (self._space_of[part] for part in node.all_input_nodes)
            return self._ties.tie(one, other)
        return self._unknown(node)

    def _unknown(self, node: fx.Node) -> int:
        for part in node.all_input_nodes:
            self._ties.tie(self._space_of[part], FIXED)
        return FIXED

    def _after_module(self, node: fx.Node, module: nn.Module) -> int:
        if len(node.all_input_nodes) != 1:
            return self._unknown(node)
        path, before = str(node.target), self._space_of[node.all_input_nodes[0]]
        if isinstance(module, _CHANNELWISE) or (isinstance(module, nn.Flatten) and module.start_dim == 1):
            return before
        if isinstance(module, _NORMS):
            self._add(before, path, module, ("weight", "bias", "running_mean", "running_var"))
            return before
        if isinstance(module, _CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels:
            self._add(before, path, module, ("weight", "bias"))
            return before
        if isinstance(module, nn.Linear) or (isinstance(module, _CONVOLUTIONS) and module.groups == 1):
            return self._through(path, module, before)
        return self._unknown(node)

    def _through(self, path: str, module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, before: int) -> int:
        """Past a layer that mixes channels: its inputs belong to the space before, its outputs are a new one."""
        entries = module.weight.shape[1]
        size = self._sizes.get(before, 0)
        # A correction is added by a hook, which the graph does not show.
        corrected = [name for name in CORRECTION if hasattr(module, name)]
        if before != FIXED and entries % size == 0:
            names = ("weight", *(f"{name}.weight" for name in corrected[:1]))
            self._axes[before] += [Axis(f"{path}.{name}", 1, entries // size) for name in names]
        else:
            self._ties.tie(before, FIXED)
        if path not in self._output_of:
            self._output_of[path] = space = self._ties.add(len(self._sizes))
            self._sizes[space] = module.weight.shape[0]
            self._add(space, path, module, ("weight", "bias"))
            self._axes[space] += [Axis(f"{path}.{name}.weight", 0) for name in corrected[1:]]
        return self._output_of[path]

    def _add(self, space: int, path: str, module: nn.Module, names: tuple[str, ...]) -> None:
        for name in names:
            if getattr(module, name, None) is not None:
                self._axes[space].append(Axis(f"{path}.{name}", 0))


def _keeps_channels(node: fx.Node) -> bool:
    """Whether a call works channel by channel, or only folds each channel's places into one row."""
    target: Any = node.target
    if node.op == "call_method":
        return target in _CHANNELWISE_METHODS or (target == "flatten" and _flattens_places(node)) or _averages(node)
    if node.op != "call_function":
        return False
    return (
        target in _CHANNELWISE_FUNCTIONS
        or (target is torch.flatten and _flattens_places(node))
        # torchvision's stochastic depth drops whole samples.
        or getattr(target, "__name__", "") == "stochastic_depth"
    )


def _flattens_places(node: fx.Node) -> bool:
    return (*node.args[1:], *node.kwargs.values()) == (1,)


def _averages(node: fx.Node) -> bool:
    """mean over the places of feature maps, as MobileNets end."""
    return node.target == "mean" and list(node.args[1:2]) in ([[2, 3]], [(2, 3)])

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
from typing import Any, Literal, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

from gemel_ray.policy.ties import Ties
from gemel_ray.vision.deltas import CORRECTION

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Entry by entry, wherever the channels are.
_ENTRYWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.ELU,
    nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_ENTRYWISE_FUNCTIONS = frozenset(
    {
        functional.relu, functional.relu6, functional.hardswish, functional.silu, functional.gelu, torch.relu,
        torch.sigmoid, functional.dropout,
    }
)  # fmt: skip
_ENTRYWISE_METHODS = frozenset({"relu", "relu_", "sigmoid", "contiguous", "clone"})
# Over the places of feature maps.
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOL_FUNCTIONS = frozenset({functional.adaptive_avg_pool2d, functional.avg_pool2d, functional.max_pool2d})
_JOINING = frozenset({operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul})
# The space of everything that must not be permuted: pictures, answers, and what unknown operations see.
FIXED = -1


class _Channels(NamedTuple):
    """A node's result: the space of its channels, and where they lie.

    In a map along the second dimension, in a row (one for each sample) along the last of two, behind Linear along the
    last of any number.
    """

    space: int
    layout: Literal["map", "row", "last"]


_UNKNOWN = _Channels(FIXED, "map")
# What an operation works on: each entry, the places of each channel, or all of them, of which it leaves one row.
Does = Literal["entries", "places", "rows"]


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
        self._results: dict[fx.Node, _Channels] = {}
        # A tensor has several names where modules share it, or where one module has two.
        self._names: dict[int, list[str]] = defaultdict(list)
        for each in (model.named_parameters, model.named_buffers):
            for name, tensor in each(remove_duplicate=False):
                self._names[id(tensor)].append(name)
        # What runs along a dimension of a tensor, by the tensor's id.
        self._claims: dict[tuple[int, int], int] = {}

    def spaces(self, graph: fx.Graph) -> tuple[Space, ...]:
        for node in graph.nodes:
            self._results[node] = self._after(node)
        return tuple(self._found())

    def _found(self) -> Iterator[Space]:
        for members in self._ties.sets():
            if FIXED in members:
                continue
            sizes = {self._sizes[space] for space in members}
            axes = dict.fromkeys(axis for space in members for axis in self._axes[space])
            if len(sizes) == 1 and axes:
                yield Space(sizes.pop(), tuple(axes))

    def _after(self, node: fx.Node) -> _Channels:
        given = [self._results[part] for part in node.all_input_nodes]
        if node.op == "call_module":
            return self._after_module(self._model.get_submodule(str(node.target)), given)
        if node.op == "get_attr":
            # What is computed with a tensor outside its module is not known to keep its channels apart.
            self._fix(operator.attrgetter(str(node.target))(self._model))
            return _UNKNOWN
        if given and (does := _what_a_call_does(node)) is not None:
            return self._past(does, given[0])
        if node.op == "call_function" and node.target in _JOINING and len(given) == 2:
            return self._joined(*given)
        return self._unknown(given)

    def _after_module(self, module: nn.Module, given: list[_Channels]) -> _Channels:
        if len(given) == 1 and (does := _what_a_module_does(module)) is not None:
            return self._past(does, given[0])
        if len(given) == 1 and (after := self._after_layer(module, given[0])) is not None:
            return after
        self._fix(*module.parameters(), *module.buffers())
        return self._unknown(given)

    def _after_layer(self, module: nn.Module, before: _Channels) -> _Channels | None:
        """Past a layer with weights; None where its channels are not those of its input."""
        if isinstance(module, _NORMS) and before.layout != "last":
            self._claim_all(before.space, module, "weight", "bias", "running_mean", "running_var")
            return before
        if isinstance(module, _CONVOLUTIONS):
            before = before if before.layout == "map" else self._unknown([before])
            if module.groups == module.in_channels == module.out_channels:
                self._claim_all(before.space, module, "weight", "bias")
                return before
            return before._replace(space=self._through(module, before.space)) if module.groups == 1 else None
        if isinstance(module, nn.Linear):
            # It mixes the last dimension, which in a map holds places.
            if before.layout == "map":
                before = self._unknown([before])._replace(layout="last")
            return before._replace(space=self._through(module, before.space))
        return None

    def _past(self, does: Does, before: _Channels) -> _Channels:
        """Past what works channel by channel, as long as the channels are where it takes them to be."""
        if does == "entries":
            return before
        if before.layout == "last" or (before.layout == "row" and does == "places"):
            before = self._unknown([before])
        return before if does == "places" else before._replace(layout="row")

    def _joined(self, one: _Channels, other: _Channels) -> _Channels:
        """Of two maps, or of two whose channels run along the last dimension."""
        if (one.layout == "map") != (other.layout == "map"):
            return self._unknown([one, other])
        layout = one.layout if one.layout == other.layout else "last"
        return _Channels(self._ties.tie(one.space, other.space), layout)

    def _unknown(self, given: list[_Channels]) -> _Channels:
        for part in given:
            self._ties.tie(part.space, FIXED)
        return _UNKNOWN

    def _through(self, layer: Any, before: int) -> int:  # noqa: ANN401 - Linear, or a convolution of any dimension
        """Past a layer that mixes channels: its inputs belong to the space before, its outputs are a new one."""
        space = self._ties.add(len(self._sizes))
        self._sizes[space] = layer.weight.shape[0]
        self._claim(before, layer.weight, 1)
        self._claim_all(space, layer, "weight", "bias")
        # A correction is added by a hook, which the graph does not show.
        down, up = (getattr(layer, name, None) for name in CORRECTION)
        if down is not None and up is not None:
            self._claim(before, down.weight, 1)
            self._claim(space, up.weight, 0)
        return space

    def _claim_all(self, space: int, module: nn.Module, *names: str) -> None:
        for name in names:
            if (tensor := getattr(module, name, None)) is not None:
                self._claim(space, tensor, 0)

    def _claim(self, space: int, tensor: torch.Tensor, dimension: int) -> None:
        """Let a space run along a dimension of a tensor. Spaces that claim the same one are one: a module that is
        called twice, two that share a weight."""
        size, entries = self._sizes.get(space, 1), tensor.shape[dimension]
        names = self._names.get(id(tensor), ())
        # A weight without a name is computed anew for each call, as parametrizations do.
        if not names or entries % size:
            self._ties.tie(space, FIXED)
        self._ties.tie(self._claims.setdefault((id(tensor), dimension), space), space)
        self._axes[space] += [Axis(name, dimension, entries // size) for name in names]

    def _fix(self, *tensors: object) -> None:
        for tensor in tensors:
            if id(tensor) in self._names and isinstance(tensor, torch.Tensor):
                for dimension in range(tensor.dim()):
                    self._claim(FIXED, tensor, dimension)


def _what_a_module_does(module: nn.Module) -> Does | None:
    if isinstance(module, _ENTRYWISE):
        return "entries"
    if isinstance(module, _POOLS):
        return "places"
    return "rows" if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1) else None


def _what_a_call_does(node: fx.Node) -> Does | None:
    if node.op == "call_method":
        return _what_a_method_does(node)
    if node.op != "call_function":
        return None
    if node.target in _POOL_FUNCTIONS:
        return "places"
    if node.target is torch.flatten:
        return _flattening(node)
    # torchvision's stochastic depth drops whole samples.
    is_entrywise = node.target in _ENTRYWISE_FUNCTIONS or getattr(node.target, "__name__", "") == "stochastic_depth"
    return "entries" if is_entrywise else None


def _what_a_method_does(node: fx.Node) -> Does | None:
    if node.target == "flatten":
        return _flattening(node)
    # Over the places of feature maps, as MobileNets end.
    if node.target == "mean" and list(node.args[1:2]) in ([[2, 3]], [(2, 3)]):
        return None if node.args[2:] or node.kwargs else "rows"
    return "entries" if node.target in _ENTRYWISE_METHODS else None


def _flattening(node: fx.Node) -> Does | None:
    return "rows" if (*node.args[1:], *node.kwargs.values()) == (1,) else None

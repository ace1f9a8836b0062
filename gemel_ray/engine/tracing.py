"""A model's forward pass as a chain of steps, by symbolic tracing, so that it can be cut in two."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from gemel_ray.policy.stems import Step

log = logging.getLogger(__name__)

# The content of the tensors below a module path, in a word.
Tokens = Callable[[str], str]
_PLAIN = (int, float, bool, str, tuple, type(None))


@dataclass(frozen=True, slots=True)
class TracedForm:
    """How models of one form compute; whose weights they have is left open."""

    graph: fx.Graph
    # The last operation of each step, after the input itself, as places among the graph's operations.
    ends: tuple[int, ...]
    # By operation, of one frame.
    multiply_adds: Mapping[fx.Node, int]
    output_bytes: Mapping[fx.Node, int]

    @property
    def input_bytes(self) -> int:
        """Of one frame, as the model takes it."""
        return self.output_bytes[next(iter(self.graph.nodes))]

    def steps(self, model: nn.Module, tokens: Tokens) -> tuple[Step, ...]:
        """The forward pass of a model of this form."""
        nodes = list(self.graph.nodes)
        spans = [(nodes[before], nodes[before + 1 : end + 1]) for before, end in pairwise(self.ends)]
        return tuple(
            Step(
                _identity(model, operations, given, tokens),
                sum(self.multiply_adds[node] for node in operations),
                self.output_bytes[operations[-1]],
            )
            for given, operations in spans
        )

    def cut(self, model: nn.Module, steps: int) -> tuple[nn.Module, nn.Module]:
        """The first steps of a model of this form, and the rest, on the model's very modules, hooks and all."""
        nodes, end = list(self.graph.nodes), self.ends[steps]
        head, tail = fx.Graph(), fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        for node in nodes[: end + 1]:
            values[node] = head.node_copy(node, values.__getitem__)
        head.output(values[nodes[end]])
        values = {nodes[end]: tail.placeholder("stem")}
        for node in nodes[end + 1 :]:
            values[node] = tail.node_copy(node, values.__getitem__)
        return fx.GraphModule(model, head), fx.GraphModule(model, tail)


def trace(model: nn.Module, input_shape: Sequence[int]) -> TracedForm | None:
    """The form of a model on the meta device that takes one tensor; None for one that cannot be traced.

    Models that branch on what they see (detectors) or read parameters outside of modules (transformers' tokens) cannot.
    Only while no other thread computes: tracing changes torch.nn for all of them.
    """
    try:
        graph = fx.Tracer().trace(model)
        if any(node.op == "get_attr" for node in graph.nodes):
            return None
        sizes = _Sizes(model, graph)
        with torch.no_grad():
            sizes.run(torch.empty(input_shape, device="meta"))
    except Exception as error:
        # Whatever a model's own code raises when it meets placeholders: it is then computed as it always was.
        log.debug("a model cannot be traced: %s", error)
        return None
    nodes = list(graph.nodes)
    ends = tuple(end for end in _ends(nodes) if nodes[end] in sizes.output_bytes)
    return TracedForm(graph, ends, sizes.multiply_adds, sizes.output_bytes)


class _Sizes(fx.Interpreter):
    """Runs a model without data, and notes what each operation gives and costs."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        # Of operations that give one tensor.
        self.output_bytes: dict[fx.Node, int] = {}
        self.multiply_adds: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - as in Interpreter
        found = super().run_node(n)
        if isinstance(found, torch.Tensor):
            self.output_bytes[n] = found.nbytes
        weight = getattr(self.module.get_submodule(str(n.target)), "weight", None) if n.op == "call_module" else None
        self.multiply_adds[n] = 0
        # Normalisation weighs too little to count.
        if weight is not None and weight.dim() > 1:
            self.multiply_adds[n] = found.numel() * math.prod(weight.shape[1:])
        return found


def _ends(nodes: Sequence[fx.Node]) -> tuple[int, ...]:
    """Places after which one value is all that later operations need, the input first; not the output's own."""
    place_of = {node: place for place, node in enumerate(nodes)}
    ends, needed_until = [], 0
    for place, node in enumerate(nodes[:-2]):
        # Whether everything before this operation has been used up by then.
        if needed_until <= place:
            ends.append(place)
        needed_until = max(needed_until, *(place_of[user] for user in node.users), place)
    return tuple(ends)


def _identity(model: nn.Module, nodes: Sequence[fx.Node], given: fx.Node, tokens: Tokens) -> str:
    """Equal for steps that do the same with the same tensors, whatever the modules are called."""
    names = {node: f"%{place}" for place, node in enumerate((given, *nodes))}
    digest = hashlib.sha256()
    for node in nodes:
        arguments = fx.node.map_arg((node.args, node.kwargs), names.__getitem__)
        digest.update(f"{node.op} {_what(model, node, tokens)} {arguments!r}\n".encode())
    return digest.hexdigest()


def _what(model: nn.Module, node: fx.Node, tokens: Tokens) -> str:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        settings = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
        return f"{type(module)!r} {module!r} {settings!r} {tokens(str(node.target))}"
    if callable(node.target):
        return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__qualname__', repr(node.target))}"
    return str(node.target)

"""Weights put in place layer by layer, so that a model computes before its last layers have arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn

# Returns once a weight set has fully arrived; raises when it will not.
Wait = Callable[[str], None]


class Stages:
    """At which module's call each weight set of a model is first needed, learnt by watching one forward pass.

    Who asks is asked in good time: a module's weights may also be read by the module around it (attention reads its
    output projection without calling it), so what is never called counts as needed by what is called around it.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Sequence[str]], need: Callable[[str], None]) -> None:
        """`places` are the paths of the modules that hold tensors of each weight set; `need` hears, before a module
        computes, of every weight set that is first needed there, in every pass."""
        self._model = model
        self._places = places
        self._need = need
        self.known = False

    @contextmanager
    def watched(self) -> Iterator[dict[str, float]]:
        """Learn from the forward pass in this block; gives the fraction of its time after which each module that
        holds weights first needs them, by its path."""
        called: dict[str, float] = {}
        hooks = [
            module.register_forward_pre_hook(partial(_note, called, path))
            for path, module in self._model.named_modules()
        ]
        fractions: dict[str, float] = {}
        begun = time.perf_counter()
        try:
            yield fractions
        finally:
            for hook in hooks:
                hook.remove()
        span = time.perf_counter() - begun
        if "" in called and span > 0:
            at = {weight: min((_nearest(path, called) for path in self._places[weight]), key=called.__getitem__)
                  for weight in self._places}  # fmt: skip
            holding = {path for paths in self._places.values() for path in paths}
            fractions |= {path: (called[_nearest(path, called)] - begun) / span for path in holding}
            self._ask(at)

    def _ask(self, at: Mapping[str, str]) -> None:
        if self.known:
            return
        for weight, path in at.items():
            self._model.get_submodule(path).register_forward_pre_hook(partial(_call, self._need, weight))
        self.known = True


def _nearest(path: str, called: Mapping[str, float]) -> str:
    """The module itself or the closest around it that was called; at last the model."""
    while path not in called:
        path = path.rpartition(".")[0]
    return path


def _note(called: dict[str, float], path: str, _module: nn.Module, _inputs: object) -> None:
    called.setdefault(path, time.perf_counter())


def _call(need: Callable[[str], None], weight: str, _module: nn.Module, _inputs: object) -> None:
    need(weight)

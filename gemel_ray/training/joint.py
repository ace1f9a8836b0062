"""Joint retraining: models that share weights, trained together until each meets its target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from gemel_ray.spec.answers import Answer
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import Objective, Recipe, Start
from gemel_ray.training.data import QueryData, SplitData, run_model, score
from gemel_ray.training.losses import batch_loss, frames_a_step
from gemel_ray.training.normalisation import reestimate_normalisation
from gemel_ray.training.views import taught, viewed
from gemel_ray.vision.alignment import align
from gemel_ray.vision.binding import bind, distinct_parameters, distinct_tensors, gather_gradients, slices_of
from gemel_ray.vision.metrics import Score

Verdict = Literal["reached", "missed", "hopeless"]
Accepts = Callable[[Mapping[str, Score]], bool]

# Frames of every query in one step.
BATCH_SIZE = 32
# Stopping at the first crossing on validation is optimistic (merging.md: half of such runs end below the target
# on unseen frames), so the target is passed by this share of what is left above it.
_MARGIN = 0.4
# A run this far below the target with half of its steps behind it does not arrive any more.
_HOPELESS_GAP = 0.15
# Nor does one even further below with a quarter behind it, once it has had as many as learning takes at all: five
# strangers that arrive are .34 below after 45 of 150 steps; two of ten classes, repeats shared, .52 to .57 after 120 of
# 450.
_FAR_GAP = 0.45
_LEAST_STEPS = 100
_WARM_UP_FRACTION = 0.1
# A run that may stop before its last step first trains so much longer, while the rate falls to nothing. The worst query
# gains by it on the gate: .973 -> .982, .969 -> .979 (five strangers, two seeds), .964 -> .992 (a family).
_COOL_DOWN_FRACTION = 0.25
# A query's loss counts in proportion to its distance from full agreement, relative to the others', between these.
_LOSS_WEIGHTS = (1 / 3, 3.0)
_LEAST_GAP = 0.002


@dataclass(frozen=True, slots=True)
class RetrainOptions:
    """How to retrain. The defaults are what merging.md found best."""

    max_steps: int
    seed: int = 0
    start: Start = "mean"
    # See trials.Candidate: validation is held to the gate's own rule.
    gate_margin: float = 0.0
    objective: Objective = "distillation"
    recipe: Recipe = "ours"
    learning_rate: float = 1e-3
    batch_size: int = BATCH_SIZE
    validate_every: int = 15
    # Whether a run that is far below its target halfway ends there.
    gives_up: bool = True


@dataclass(frozen=True, slots=True)
class Validation:
    """How near the originals the merged models are on the validation split after so many steps."""

    step: int
    scores: Mapping[str, Score]
    # Set at the last validation.
    verdict: Verdict | None


class _CoolDown(NamedTuple):
    """The last steps of a run, and the rate before them."""

    begins: int
    ends: int
    rate: float

    def rate_at(self, step: int) -> float:
        return self.rate * (self.ends - step) / (self.ends - self.begins + 1)


class JointRetraining:
    """Binds the models, then trains all of them together. The models are changed in place."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        data: Mapping[str, QueryData],
        configuration: MergeConfiguration,
        options: RetrainOptions,
        *,
        tied: MergeConfiguration | None = None,
        originals: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """`tied`: what shares weights already, and so moves together when channels are brought in line. Queries whose
        `originals` are given learn from views."""
        self.models = {query: models[query] for query in configuration.queries}
        self.data = {query: data[query] for query in configuration.queries}
        self.options = options
        self._originals = originals or {}
        self._rng = np.random.default_rng(options.seed)
        self._loss_weights = dict.fromkeys(self.models, 1.0)
        self._cool_down: _CoolDown | None = None
        self._stops_early = True
        # The scores on validation that come nearest to the targets, and the weights that made them.
        self._best: Mapping[str, Score] = {}
        self._kept: list[torch.Tensor] = []
        if options.start == "aligned":
            align(self.models, configuration, tied=tied)
        bind(self.models, configuration, start=options.start)
        self._slices = slices_of(self.models.values())
        for query, model in self.models.items():
            train = self.data[query].splits["train"]
            reestimate_normalisation(model, self.data[query].task, train, seed=options.seed)

    def run(self, accepts: Accepts = lambda _scores: True) -> Iterator[Validation]:
        """Validate before the first step, then every few steps, until a verdict; the best weights are kept.

        A run that may stop before its last step asks once whether its weights, and their scores on validation, are
        accepted; if they are not, it goes on to its last step and keeps the best of what follows.
        """
        validation, optimiser = self._validated(0), self._optimiser()
        while validation.verdict is None or self._goes_on(validation, accepts):
            yield replace(validation, verdict=None)
            self._weigh(validation.scores)
            validation = self._validated(self._train(optimiser, validation.step))
        self._restore()
        yield replace(validation, scores=self._best)

    def _validated(self, step: int) -> Validation:
        scores = self.score("validation")
        if not self._best or self._worst_margin(scores) > self._worst_margin(self._best):
            self._best = scores
            self._keep()
        return Validation(step, scores, self._verdict(step, scores))

    def _goes_on(self, validation: Validation, accepts: Accepts) -> bool:
        """Whether a run that has its verdict trains on: it cools down before it stops early, and may be refused."""
        if validation.verdict != "reached" or validation.step >= self.options.max_steps:
            return False
        if self._may_cool_down(validation.step):
            self._cool_down = self._cooling(validation.step)
            return True
        self._restore()
        if accepts(self._best):
            return False
        self._stops_early, self._cool_down, self._best = False, None, {}
        return True

    def _optimiser(self) -> torch.optim.Optimizer:
        parameters = distinct_parameters(self.models.values())
        rate = self.options.learning_rate
        if self.options.recipe == "paper":
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4)
        return torch.optim.AdamW(parameters, lr=rate)

    def answers(self, split: Literal["validation", "gate"]) -> dict[str, list[Answer]]:
        """What every model answers to the frames of a split."""
        return {
            query: run_model(model, self.data[query].task, self.data[query].splits[split].images)[1]
            for query, model in self.models.items()
        }

    def score(self, split: Literal["validation", "gate"]) -> dict[str, Score]:
        """What every query's target is held against, on a split."""
        return {query: score(self.data[query], split, found) for query, found in self.answers(split).items()}

    def _train(self, optimiser: torch.optim.Optimizer, step: int) -> int:
        for model in self.models.values():
            model.train()
        until = min(step + self.options.validate_every, self.options.max_steps)
        if self._cool_down:
            until = self._cool_down.ends
        with _drawing(self.options.seed + step, distinct_parameters(self.models.values())):
            while step < until:
                if self.options.recipe == "ours":
                    rate = self._cool_down.rate_at(step) if self._cool_down else _rate_at(step, self.options)
                    _set_rate(optimiser, rate)
                self._one_step(optimiser)
                step += 1
        return step

    def _may_cool_down(self, step: int) -> bool:
        return self.options.recipe == "ours" and self._cool_down is None and step > 0

    def _cooling(self, step: int) -> _CoolDown:
        """What is left to do for a run that may stop after that step."""
        more = max(self.options.validate_every, math.ceil(_COOL_DOWN_FRACTION * step))
        return _CoolDown(step, min(step + more, self.options.max_steps), _rate_at(step - 1, self.options))

    def _one_step(self, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad(set_to_none=True)
        # One backward pass a query: activations of only one model are alive at a time.
        for query, model in self.models.items():
            train, places = self._drawn(query)
            loss = batch_loss(model, self.data[query].task, train, places, self.options.objective)
            (self._loss_weights[query] * loss).backward()
        gather_gradients(self._slices)
        optimiser.step()

    def _drawn(self, query: str) -> tuple[SplitData, np.ndarray]:
        """What a query learns from in one step: where its frames lie, or fresh views of them."""
        data, train = self.data[query], self.data[query].splits["train"]
        size = min(frames_a_step(data.task, self.options.batch_size), len(train.images))
        places = self._rng.choice(len(train.images), size=size, replace=False)
        if (original := self._originals.get(query)) is None:
            return train, places
        return taught(viewed(train, places, self._rng), train.labels[places], data.task, original), np.arange(size)

    def _weigh(self, scores: Mapping[str, Score]) -> None:
        """Who is further from its original counts for more, within bounds."""
        if self.options.recipe != "ours":
            return
        gaps = {query: max(1 - score.estimate, _LEAST_GAP) for query, score in scores.items()}
        mean = sum(gaps.values()) / len(gaps)
        low, high = _LOSS_WEIGHTS
        self._loss_weights = {query: min(max(gap / mean, low), high) for query, gap in gaps.items()}

    def _verdict(self, step: int, scores: Mapping[str, Score]) -> Verdict | None:
        """What is known after a validation."""
        if self._stops_early and all(self._is_safe(query, score) for query, score in scores.items()):
            return "reached"
        if step >= (self._cool_down.ends if self._cool_down else self.options.max_steps):
            return "reached" if self._worst_margin(self._best) >= 0 else "missed"
        return "hopeless" if self.options.gives_up and self._is_hopeless(step) else None

    def _is_hopeless(self, step: int) -> bool:
        # The best and not the last: a validation while the rate is high may fall by .2 and come back.
        gap, done_fraction = -self._worst_margin(self._best), step / self.options.max_steps
        if done_fraction >= 0.5:
            return gap > _HOPELESS_GAP
        return done_fraction >= 0.25 and step >= _LEAST_STEPS and gap > _FAR_GAP

    def _is_safe(self, query: str, score: Score) -> bool:
        """Far enough above the target to stop: the gate, which is about as large, would most likely agree."""
        target = self._target(query)
        return score.estimate >= stop_at(target) and score.lower_bound >= target - self.options.gate_margin

    def _target(self, query: str) -> float:
        return self.data[query].query.accuracy_target

    def _worst_margin(self, scores: Mapping[str, Score]) -> float:
        return min(score.estimate - self._target(query) for query, score in scores.items())

    def _keep(self) -> None:
        """Remember the weights as they are, what is shared once; a probe's are never changed."""
        if self.options.max_steps:
            self._kept = [tensor.detach().clone() for tensor in distinct_tensors(self.models.values())]

    @torch.no_grad()
    def _restore(self) -> None:
        # Copies into the existing tensors: what is shared stays shared.
        for tensor, kept in zip(distinct_tensors(self.models.values()) if self._kept else (), self._kept, strict=True):
            tensor.copy_(kept)


@contextmanager
def _drawing(seed: int, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """What models draw while they train (dropout, stochastic depth) comes from this seed, so that trials repeat."""
    with torch.random.fork_rng({each.device for each in parameters if each.is_cuda}):
        torch.manual_seed(seed)
        yield


def stop_at(target: float) -> float:
    """The validation agreement at which training stops early."""
    return target + _MARGIN * (1 - target)


def _rate_at(step: int, options: RetrainOptions) -> float:
    """Cosine decay to zero: what mattered most of all in merging.md. A short rise spares the averaged start."""
    rising = min(1.0, (step + 1) / max(1.0, _WARM_UP_FRACTION * options.max_steps))
    return options.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * step / options.max_steps))


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate

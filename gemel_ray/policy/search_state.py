"""What a merge search is told, and all it knows: plain values that can be written down."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from gemel_ray.policy.additions import Addition
from gemel_ray.spec.feeds import Fraction
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.strict import Strict
from gemel_ray.spec.trials import Candidate, Objective, Start

# In their order.
Phase = Literal["probe", "sift", "kin", "leap", "widen", "persist", "divide"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class SearchSettings(Strict):
    """How to try, and when to stop at the latest. Probes, which train nothing, do not count as trials."""

    max_trials: Annotated[int, Field(ge=1)] = 40
    max_steps: Annotated[int, Field(ge=1)] = 150
    # A whole that failed close to its targets on validation is tried once more with so many times the steps; 1: it is
    # not.
    patience: Annotated[int, Field(ge=1)] = 3
    # Retraining steps of all trials together: a training epoch has as many as its feeds' frames make batches.
    most_steps: int | None = None
    # See trials.Candidate.
    objective: Objective = "distillation"
    gate_margin: Fraction = 0.0
    # Where the shared weights of a leap start: relatives stay as they are when channels are brought in line.
    start: Start = "aligned"
    # A layer that resists sharing alone is tried once more with private corrections of this rank; 0: it is not.
    delta_rank: Annotated[int, Field(ge=0)] = 8
    # Once a trial has failed that knew its training frames by heart, later ones learn from views of them as well.
    views: bool = True
    # Candidates of one dividing round. A part of what decides the result, so it does not follow the machine's size.
    side_by_side: Annotated[int, Field(ge=1)] = 2


class Failure(Strict):
    """How a configuration failed after training."""

    # Queries that stayed below their target, and how far the worst of them did; empty and None where not known.
    objectors: tuple[str, ...] = ()
    shortfall: float | None = None


class Waiting(Strict):
    """An addition that is still to be tried."""

    addition: Addition
    # How far below its target the whole stayed that it is a part of; 0 where there was none.
    shortfall: float = 0.0


class SearchState(Strict):
    """All a search knows; plain values, so that it can be written down after every round and taken up again."""

    # The set of models that is searched; others, which share nothing with it, are searched beside it.
    name: str = ""
    # Everything that may be shared across models, and the part of it whose weights resemble each other.
    groups: Addition
    relatives: Addition = ()
    # The same and more: repeats within one model, layers that agree in shape alone. Empty: not to be tried.
    beyond: Addition = ()
    # The same and more still: smaller layers as slices of larger ones.
    widest: Addition = ()
    settings: SearchSettings
    seed: int
    # The release whose weights the next candidates start from.
    release: int
    phase: Phase = "probe"
    accepted: MergeConfiguration = MergeConfiguration()
    # What is still to be tried on top of `accepted`, most promising first.
    waiting: tuple[Waiting, ...] = ()
    # What failed on its own and cannot be split.
    rejected: Addition = ()
    # Whether a trial has failed that knew its training frames far better than others.
    overfits: bool = False
    # Wholes that failed close to their targets on validation.
    close: tuple[Addition, ...] = ()
    # Configurations that failed after training, by fingerprint: never tried twice.
    failed: dict[str, Failure] = Field(default_factory=dict)
    # The round under way, and what its candidates add.
    round: tuple[Candidate, ...] = ()
    adds: tuple[Addition, ...] = ()
    # Candidates proposed so far, and how many of them train.
    proposed: int = 0
    trials: int = 0
    # Retraining steps that were taken.
    steps: int = 0

    @property
    def trains(self) -> bool:
        """Whether the candidates of this phase are retrained."""
        return self.phase not in ("probe", "sift")

    @property
    def divides(self) -> bool:
        """Whether this phase goes on in parts of what failed."""
        return self.phase in ("sift", "divide")

    def gain(self, addition: Addition) -> int:
        """Bytes that an addition saves on top of what is accepted."""
        return self.accepted.joined(addition).saved_bytes - self.accepted.saved_bytes

    def rest(self, wanted: Addition) -> Addition:
        """The layers of `wanted` that still save something on top of what is accepted."""
        return tuple(layer for layer in wanted if self.gain((layer,)) > 0)

"""What a search proposes and what a trial answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemel_ray.spec.feeds import Fraction
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Accuracy, BlobInfo, Sha256
from gemel_ray.spec.strict import Strict

# Where shared weights start: their members' mean, after their channels were brought in line (no change for relatives)
# or as they are, or one member's.
Start = Literal["aligned", "mean", "member"]
# What retraining follows: the originals' own answers, the feeds' labels, or both alike.
Objective = Literal["distillation", "labels", "both"]
# AdamW with a decaying rate, or GEMEL's SGD with momentum at a constant one (the baseline).
Recipe = Literal["ours", "paper"]
# The reason of a candidate that was not tried to its end, since it could change nothing any more.
SUPERSEDED = "superseded"


class Candidate(Strict):
    """One merge configuration to try, and how hard to try."""

    number: Annotated[int, Field(ge=0)]
    # The independent set of models that is searched, by its name; numbers count within it.
    model_set: str = ""
    label: str
    configuration: MergeConfiguration
    # 0 shares without training: average, re-estimate the normalisation, look.
    max_steps: Annotated[int, Field(ge=0)]
    # The release whose weights it continues from.
    start_release: int
    start: Start = "mean"
    objective: Objective = "distillation"
    recipe: Recipe = "ours"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    # How far below the target the gate's lower confidence bound may lie; the estimate itself may not.
    gate_margin: Fraction = 0.0
    # Classifiers learn from flipped and shifted frames, answered by the originals.
    views: bool = False
    seed: int = 0


class Outcome(Strict):
    """What became of a candidate. Weights lie in the store already; a manifest that names them publishes them."""

    candidate: int
    passed: bool
    # 'passed', 'missed on validation', 'missed on the gate', 'hopeless' or 'failed: ...'
    reason: str
    steps: int = 0
    seconds: float = 0.0
    # Agreement with the originals on the validation split, of the weights kept.
    validation: dict[str, float] = Field(default_factory=dict)
    # Queries that stayed below their target; empty where that is not known.
    objectors: tuple[str, ...] = ()
    # How far the worst query stayed below its target, where the trial was decided; None where that is not known.
    shortfall: float | None = None
    # Of the classifier most concerned, how much better it agrees with its original on frames it learned from than on
    # validation; None where that was not looked at.
    overfit: float | None = None
    accuracies: dict[str, Accuracy] = Field(default_factory=dict)
    # query -> module path -> blob, for the queries the candidate touched.
    weights: dict[str, dict[str, Sha256]] = Field(default_factory=dict)
    blobs: dict[Sha256, BlobInfo] = Field(default_factory=dict)

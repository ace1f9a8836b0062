"""The release manifest: the contract between merging and serving."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.strict import Strict
from gemel_ray.spec.workload import Judge, Name, Query

SCHEMA_VERSION = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BlobInfo(Strict):
    """What a blob weighs: its tensors in memory, and the file that carries them."""

    tensor_bytes: Annotated[int, Field(ge=0)]
    file_bytes: Annotated[int, Field(gt=0)]


class Accuracy(Strict):
    """How well one query's merged model does on the gate split, which nothing else has seen.

    `agreement` compares with the original's own answers. The accuracies against labels, and their ratio, are there
    only where the feed has labels. The target is held against one of the two, as the query is `judged_by`.
    """

    target: float
    judged_by: Judge = "agreement"
    measure: str
    agreement: float
    lower_bound: float
    gate_frames: int
    validation_agreement: float
    original_accuracy: float | None = None
    merged_accuracy: float | None = None
    # merged / original, and its lower confidence bound.
    relative_accuracy: float | None = None
    relative_lower_bound: float | None = None

    @property
    def held(self) -> tuple[float, float]:
        """What the target is held against: an estimate and its lower confidence bound."""
        if self.judged_by == "labels" and self.relative_accuracy is not None and self.relative_lower_bound is not None:
            return self.relative_accuracy, self.relative_lower_bound
        return self.agreement, self.lower_bound

    @property
    def meets_target(self) -> bool:
        """Whether the estimate reaches the target."""
        return self.held[0] >= self.target

    def passes(self, margin: float) -> bool:
        """Whether the gate's estimate reaches the target, and its lower bound the target less a margin."""
        return self.meets_target and self.held[1] >= self.target - margin


class ReleasedQuery(Strict):
    """One query as it is to be served: the question, where each of its weights is, how good it is."""

    query: Query
    # Module path of a layer, or key of a piece of several layers -> blob; see spec.weight_sets.
    weights: dict[str, Sha256]
    # Weights that are slices of what their blob holds: module path -> tensor -> shape of its first rows, columns ...
    slices: dict[str, dict[str, tuple[int, ...]]] = Field(default_factory=dict)
    accuracy: Accuracy | None = None

    @property
    def agreement_target(self) -> float:
        """The agreement that is asked for while it is served, where there are no labels.

        Where labels judged the release, it is what the release was seen to have on the gate, at the least.
        """
        if self.accuracy is None or self.accuracy.judged_by == "agreement":
            return self.query.accuracy_target
        return min(self.query.accuracy_target, self.accuracy.lower_bound)


class Provenance(Strict):
    """How a release was made."""

    created_at: str
    command: str
    seed: int
    versions: dict[str, str]
    note: str = ""
    trial: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


class Manifest(Strict):
    """One immutable release."""

    schema_version: Literal[1] = 1
    release: Annotated[int, Field(gt=0)]
    parent: int | None = None
    workload_name: Name
    workload_hash: Sha256
    queries: dict[Name, ReleasedQuery]
    merge_configuration: MergeConfiguration = MergeConfiguration()
    blobs: dict[Sha256, BlobInfo]
    # Bytes of all parameters and buffers, shared ones counted once.
    bytes_before: Annotated[int, Field(gt=0)]
    bytes_after: int
    provenance: Provenance

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        needed = {blob for query in self.queries.values() for blob in query.weights.values()}
        if lost := needed - self.blobs.keys():
            raise ValueError(f"blob {min(lost)} is used by a query but not described under 'blobs'")
        held = sum(self.blobs[blob].tensor_bytes for blob in needed)
        if held != self.bytes_after:
            raise ValueError(f"bytes_after says {self.bytes_after}, the blobs in use hold {held}")
        return self

    def blobs_of(self, query: str) -> tuple[str, ...]:
        """The blobs one query needs resident, each once, in order of module path."""
        weights = self.queries[query].weights
        return tuple(dict.fromkeys(weights[path] for path in sorted(weights)))

"""What a report tells, as plain values: every number on the page comes from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from gemel_ray.policy.evidence import Prediction
from gemel_ray.report.layers import Bounds
from gemel_ray.report.picture import Picture
from gemel_ray.spec.merge import SharedLayer
from gemel_ray.spec.release import Accuracy, Manifest
from gemel_ray.spec.trials import SUPERSEDED
from gemel_ray.spec.uris import shown_command


class Trial(BaseModel):
    """One line of a search's history. Searches by older versions did not say when a trial ended."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_set: str
    candidate: int
    label: str
    saved_bytes: int
    passed: bool
    reason: str
    steps: int
    seconds: float
    objectors: tuple[str, ...] = ()
    ended_at: AwareDatetime | None = None

    @property
    def kind(self) -> str:
        """What became of it, in one word: passed, missed, superseded or failed."""
        if self.passed:
            return "passed"
        if self.reason == SUPERSEDED:
            return "superseded"
        return "failed" if self.reason.startswith("failed") else "missed"


@dataclass(frozen=True, slots=True)
class Saving:
    """A release of the search, in time: seconds after the originals were published, None where that is unknown."""

    release: int
    after_s: float | None
    saved_bytes: int
    saved_fraction: float
    label: str


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What one search came to: targets and worst query's agreement as fractions, against the share of bytes saved."""

    search: str
    release: int
    target: float
    worst_agreement: float
    worst_lower_bound: float
    saved_fraction: float


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it. What could not be told, and the way out, is in `notes`."""

    store: str
    head: int | None
    manifest: Manifest
    picture: Picture
    bounds: Bounds | None
    lineage: tuple[Manifest, ...]
    savings: tuple[Saving, ...]
    points: tuple[OperatingPoint, ...]
    search: str
    trials: tuple[Trial, ...]
    started_at: datetime | None
    prediction: Prediction | None
    # Rows of `gemel simulate`, empty where nothing was simulated.
    simulations: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def saved_bytes(self) -> int:
        """Bytes that the release spares against every model with weights of its own."""
        return self.manifest.bytes_before - self.manifest.bytes_after

    @property
    def saved_fraction(self) -> float:
        """The same as a share of those."""
        return self.share(self.saved_bytes)

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        """Of the queries that were merged, by name."""
        return {name: released.accuracy for name, released in self.manifest.queries.items() if released.accuracy}

    def share(self, count_bytes: float) -> float:
        """Bytes as a share of what the models hold when nothing is shared; 0 where they hold nothing."""
        return count_bytes / self.manifest.bytes_before if self.manifest.bytes_before else 0.0

    def document(self) -> dict[str, Any]:
        """What --json prints, and what the page carries for programs."""
        return {
            "store": self.store,
            "release": self.manifest.release,
            "head": self.head,
            "workload": self.manifest.workload_name,
            "bytes_before": self.manifest.bytes_before,
            "bytes_after": self.manifest.bytes_after,
            "saved_fraction": self.saved_fraction,
            "bounds": None if self.bounds is None else asdict(self.bounds),
            "shared": [_shared(layer) for layer in self.picture.shares],
            "accuracies": {name: found.model_dump(mode="json") for name, found in self.accuracies.items()},
            "savings": [asdict(saving) for saving in self.savings],
            "operating_points": [asdict(point) for point in self.points],
            "search": self.search,
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "prediction": None if self.prediction is None else asdict(self.prediction),
            "simulations": [dict(row) for row in self.simulations],
            "provenance": [_made(manifest) for manifest in self.lineage],
            "notes": list(self.notes),
        }


def pareto(points: Sequence[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """Points that no other beats in agreement and saving both, by agreement."""
    best: list[OperatingPoint] = []
    for point in sorted(points, key=lambda found: (-found.worst_agreement, -found.saved_fraction)):
        if not best or point.saved_fraction > best[-1].saved_fraction:
            best.append(point)
    return tuple(reversed(best))


def _shared(layer: SharedLayer) -> dict[str, Any]:
    return {
        "members": [str(member) for member in layer.members],
        "layer_bytes": layer.layer_bytes,
        "rank": layer.rank,
        "saved_bytes": layer.saved_bytes,
    }


def _made(manifest: Manifest) -> dict[str, Any]:
    made = manifest.provenance.model_dump(mode="json", exclude={"trial"})
    # Older versions kept the keys of URIs.
    return {"release": manifest.release, **made, "command": shown_command(made["command"].split(" "))}

"""What the functions return: the library's own values, which are tables besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemel_ray.api.tabular import Row, Tabular
from gemel_ray.policy.grouping import Analysis
from gemel_ray.spec.errors import StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import counted, format_bytes
from gemel_ray.spec.uris import without_secrets
from gemel_ray.spec.workload import Workload
from gemel_ray.weights.files import Files
from gemel_ray.weights.store import Store


class LoadedWorkload(Tabular, Workload):
    """A workload, one row a query."""

    def table_title(self) -> str:
        return f"Workload {self.name}: {len(self.queries)} queries on {len(self.feeds)} feeds"

    def rows(self) -> list[Row]:
        return [
            {
                "query": query.name,
                "feed": query.feed,
                "model": query.model.builder,
                "classes": list(query.model.classes),
                "accuracy_target_fraction": query.accuracy_target,
                "fps": query.fps,
                "slo_ms": query.slo_ms,
            }
            for query in self.queries
        ]


class AnalyzedWorkload(Tabular, Analysis):
    """What a workload's models could share, one row a layer group, the largest saving first."""

    __slots__ = ()

    def table_title(self) -> str:
        across, widest = (
            f"{100 * most / self.total_bytes:.1f} %" if self.total_bytes else "nothing"
            for most in (self.shareable_bytes, self.widest_shareable_bytes)
        )
        return (
            f"{format_bytes(self.total_bytes)} in {len(self.inventories)} models, of which sharing across models could "
            f"save {across}, within them and in slices {widest}"
        )

    def rows(self) -> list[Row]:
        return [
            {
                "signature": group.signature,
                "members": [str(member) for member in group.members],
                "layer_bytes": group.layer_bytes,
                "saved_bytes": group.saved_bytes,
            }
            for group in self.groups
        ]


class Release(Tabular, Manifest):
    """A release, one row a query."""

    def table_title(self) -> str:
        before, after = format_bytes(self.bytes_before), format_bytes(self.bytes_after)
        saved = f"{100 * (1 - self.bytes_after / self.bytes_before):.1f} %" if self.bytes_before else "nothing"
        return f"Release {self.release} of {self.workload_name}: {after} instead of {before}, {saved} saved"

    def rows(self) -> list[Row]:
        return [
            {
                "query": name,
                "model": released.query.model.builder,
                "target_fraction": released.query.accuracy_target,
                "agreement_fraction": released.accuracy and released.accuracy.agreement,
                "lower_bound_fraction": released.accuracy and released.accuracy.lower_bound,
                "gate_frames": released.accuracy and released.accuracy.gate_frames,
                "weights_bytes": sum(self.blobs[blob].tensor_bytes for blob in self.blobs_of(name)),
            }
            for name, released in self.queries.items()
        ]


class OpenedStore(Tabular, Store):
    """A store, one row a release."""

    def __init__(self, files: Files, uri: str) -> None:
        """`uri` is what it was opened by."""
        super().__init__(files)
        self._uri = uri

    def table_title(self) -> str:
        return f"{without_secrets(self._uri)}: {counted(len(self.releases()), 'release')}, HEAD is {self.head()}"

    def rows(self) -> list[Row]:
        """One that is damaged is a row too, with what is wrong in its note."""
        return [self._row(number) for number in self.releases()]

    def _row(self, number: int) -> Row:
        try:
            return _release_row(self.manifest(number))
        except StoreError as error:
            return {"release": number, "note": f"damaged: {error}"}

    def release(self, number: int | None = None) -> Release:
        """One release as a table, HEAD's by default. Raises MissingReleaseError and StoreError as `manifest` does."""
        return as_release(self.manifest(number))

    def report(
        self, out: str | Path = "report.html", *, release: int | None = None, allow_factories: bool = False
    ) -> Path:
        """Write the report that `gemel report` writes; where it is. Raises what `report.writing.write_report` does."""
        from gemel_ray.report.writing import write_report

        write_report(self._uri, Path(out), release=release, allow_factories=allow_factories)
        return Path(out)


@dataclass(frozen=True, slots=True)
class Simulations(Tabular):
    """What a simulated box made of a release, one row a policy and budget; see `gemel simulate`."""

    measured: Sequence[Row]

    def table_title(self) -> str:
        devices = sorted({str(row["device"]) for row in self.measured})
        return f"{counted(len(self.measured), 'simulation')} on {', '.join(devices) or 'nothing'}"

    def rows(self) -> list[Row]:
        return list(self.measured)


@dataclass(frozen=True, slots=True)
class RunningService(Tabular):
    """A service that answers at `url` for as long as its block lasts, one row a query it serves."""

    url: str

    def status(self) -> dict[str, Any]:
        """What `gemel status` tells. ServingError when the service does not answer."""
        from gemel_ray.serving.asking import ask_status

        return dict(ask_status(self.url))

    def table_title(self) -> str:
        return f"Serving at {self.url}"

    def rows(self) -> list[Row]:
        return [_plain(found) for found in self.status()["queries"]]


def as_release(manifest: Manifest) -> Release:
    """The same manifest, checked already."""
    return Release.model_construct(**dict(manifest))


def _release_row(manifest: Manifest) -> dict[str, Any]:
    found = [released.accuracy.agreement for released in manifest.queries.values() if released.accuracy]
    return {
        "release": manifest.release,
        "parent": manifest.parent,
        "created_at": manifest.provenance.created_at,
        "size_bytes": manifest.bytes_after,
        "saved_fraction": 1 - manifest.bytes_after / manifest.bytes_before if manifest.bytes_before else 0.0,
        "worst_agreement_fraction": min(found, default=None),
        "note": manifest.provenance.note,
    }


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Of a query's status what is one value; the rest is in `status()`."""
    return {key: value for key, value in found.items() if isinstance(value, str | int | float | bool)}

"""Reading a store for a report. What cannot be read beside the release itself becomes a note, not a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gemel_ray.policy.evidence import Prediction, judged
from gemel_ray.policy.search_state import SearchState
from gemel_ray.report.facts import Facts, OperatingPoint, Saving, Trial
from gemel_ray.report.layers import Bounds, bounds_of, inventories_of, searched_bounds
from gemel_ray.report.picture import lay_out
from gemel_ray.spec.errors import MissingReleaseError, StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.uris import without_secrets
from gemel_ray.weights.store import Store, open_store

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(slots=True)
class _Search:
    """What is left of a release's search; all empty where there was none."""

    name: str = ""
    trials: tuple[Trial, ...] = ()
    states: tuple[SearchState, ...] = ()
    prediction: Prediction | None = None
    notes: list[str] = field(default_factory=list)


def gather(
    uri: str,
    release: int | None = None,
    *,
    simulations: Sequence[Mapping[str, Any]] = (),
    allow_factories: bool = False,
) -> Facts:
    """Everything a report tells of one release, HEAD's by default.

    Raises MissingReleaseError where there is none, and StoreError where its manifest or HEAD cannot be read, or where
    there is no store.
    """
    store = open_store(uri)
    manifest, head = store.manifest(release), store.head()
    search = _search(store, manifest)
    manifests, notes = _readable(store)
    inventories, unknown = inventories_of(manifest, allow_factories=allow_factories)
    lineage = _lineage(store, manifest, notes)
    return Facts(
        store=without_secrets(uri),
        head=head,
        manifest=manifest,
        picture=lay_out(inventories, manifest.merge_configuration),
        bounds=_bounds(search, None if unknown else bounds_of(inventories)),
        lineage=tuple(lineage),
        savings=_savings(lineage),
        points=_points(manifest, manifests),
        search=search.name,
        trials=search.trials,
        started_at=moment(lineage[0].provenance.created_at),
        prediction=search.prediction,
        simulations=tuple(simulations),
        notes=(*notes, *search.notes, *_unknown(unknown)),
    )


def moment(text: str) -> datetime | None:
    """When a manifest says it was made; None where it says so in no way that can be read."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _search(store: Store, manifest: Manifest) -> _Search:
    """The search that made a release; of the originals the one for the same workload."""
    name = str(manifest.provenance.trial.get("search") or f"{manifest.workload_name}-{manifest.workload_hash[:12]}")
    try:
        saved = store.read_state(name) if name in store.searches() else None
    except StoreError as error:
        return _Search(notes=[f"The search is left out: {error}"])
    if saved is None:
        return _Search()
    trials, bad_trials = _parsed(Trial, saved.get("history"))
    states, bad_states = _parsed(SearchState, saved.get("states"))
    bad = bad_trials + bad_states
    notes = [f"Parts of the search {name!r} are left out: {bad} entries are not as this version writes them."]
    return _Search(name, trials, states, _prediction(saved.get("prediction"), states), notes if bad else [])


def _parsed(kind: type[ModelT], entries: object) -> tuple[tuple[ModelT, ...], int]:
    """The entries that can be read, and how many cannot."""
    found: list[ModelT] = []
    listed = entries if isinstance(entries, list) else []
    for entry in listed:
        try:
            found.append(kind.model_validate(entry))
        except ValidationError:
            continue
    return tuple(found), len(listed) - len(found)


def _prediction(saved: object, states: Sequence[SearchState]) -> Prediction | None:
    """As the search wrote it down; older versions did not, but kept what it is made from."""
    if isinstance(saved, dict):
        try:
            return Prediction(**{key: int(value) for key, value in saved.items()})
        except (TypeError, ValueError):
            pass
    judgements = [judged(state) for state in states]
    return sum(judgements[1:], start=judgements[0]) if judgements else None


def _readable(store: Store) -> tuple[list[Manifest], list[str]]:
    """All manifests that can be read, and a note for each of the others."""
    found, notes = [], []
    for number in store.releases():
        try:
            found.append(store.manifest(number))
        except StoreError as error:
            notes.append(f"Release {number} is left out: {error}")
    return found, notes


def _lineage(store: Store, manifest: Manifest, notes: list[str]) -> list[Manifest]:
    """From the originals to the release, without those that `gemel gc` has removed or that cannot be read."""
    found: list[Manifest] = []
    try:
        numbers = store.lineage(manifest.release)
    except StoreError as error:
        notes.append(f"The release's history ends early: {error}")
        return [manifest]
    removed: list[int] = []
    for number in numbers:
        try:
            found.append(store.manifest(number))
        except MissingReleaseError:
            removed.append(number)
        except StoreError as error:
            notes.append(f"Release {number} is left out of the history: {error}")
    if removed:
        notes.append(
            f"Left out of the history, since they were removed: releases {', '.join(map(str, removed[::-1]))}."
        )
    return found[::-1] or [manifest]


def _savings(lineage: Sequence[Manifest]) -> tuple[Saving, ...]:
    return tuple(_saving(manifest, lineage[0]) for manifest in lineage)


def _saving(manifest: Manifest, root: Manifest) -> Saving:
    made, began = moment(manifest.provenance.created_at), moment(root.provenance.created_at)
    saved_bytes = manifest.bytes_before - manifest.bytes_after
    return Saving(
        release=manifest.release,
        after_s=(made - began).total_seconds() if made and began else None,
        saved_bytes=saved_bytes,
        saved_fraction=saved_bytes / manifest.bytes_before if manifest.bytes_before else 0.0,
        label=manifest.provenance.note,
    )


def _points(manifest: Manifest, manifests: Sequence[Manifest]) -> tuple[OperatingPoint, ...]:
    """The last release of every search over the same queries."""
    last: dict[str, OperatingPoint] = {}
    for found in manifests:
        search = found.provenance.trial.get("search")
        accuracies = [released.accuracy for released in found.queries.values() if released.accuracy]
        if search and accuracies and found.queries.keys() == manifest.queries.keys():
            last[str(search)] = OperatingPoint(
                search=str(search),
                release=found.release,
                target=min(accuracy.target for accuracy in accuracies),
                worst_agreement=min(accuracy.held[0] for accuracy in accuracies),
                worst_lower_bound=min(accuracy.held[1] for accuracy in accuracies),
                saved_fraction=1 - found.bytes_after / found.bytes_before,
            )
    return tuple(sorted(last.values(), key=lambda point: (point.target, point.search)))


def _bounds(search: _Search, inspected: Bounds | None) -> Bounds | None:
    return searched_bounds(search.states) if inspected is None and search.states else inspected


def _unknown(queries: Sequence[str]) -> list[str]:
    if not queries:
        return []
    return [
        f"The models of {', '.join(queries)} could not be built here, so their private layers are drawn as one piece; "
        "their factories must be installed and allowed (--allow-factories)."
    ]

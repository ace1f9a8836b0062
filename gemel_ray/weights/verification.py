"""Everything that can be wrong with a store, found by reading all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemel_ray.spec.errors import StoreError
from gemel_ray.weights.names import PIN, blob_name, manifest_name

if TYPE_CHECKING:
    from gemel_ray.weights.store import Store


@dataclass(frozen=True, slots=True)
class Problem:
    """Which file, and what is wrong with it."""

    path: str
    what: str


def problems_of(store: Store) -> list[Problem]:
    """Damage, gaps, and leftovers of interrupted writes."""
    left = "left over from an interrupted write; safe to delete"
    leftovers = [Problem(entry.name, left) for entry in store.leftovers()]
    return [*_of_releases(store), *_of_head(store), *_of_blobs(store), *leftovers]


def _of_releases(store: Store) -> list[Problem]:
    problems = []
    for number in store.releases():
        try:
            blobs = sorted(store.manifest(number).blobs)
        except StoreError as error:
            problems.append(Problem(manifest_name(number), str(error)))
            continue
        lost = (sha for sha in blobs if not store.has_blob(sha))
        problems += [Problem(blob_name(sha), f"missing, needed by release {number}") for sha in lost]
    return problems


def _of_head(store: Store) -> list[Problem]:
    try:
        head, releases = store.head(), store.releases()
    except StoreError as error:
        return [Problem("HEAD", str(error))]
    if head is None and releases:
        return [Problem("HEAD", f"is missing; write the release to serve into it, one of {releases}")]
    if head is not None and head not in releases:
        return [Problem("HEAD", f"points at release {head}, which does not exist; releases: {releases or 'none'}")]
    return _of_pin(store, releases)


def _of_pin(store: Store, releases: list[int]) -> list[Problem]:
    try:
        pinned = store.pinned()
    except StoreError as error:
        return [Problem(PIN, str(error))]
    if pinned is None or pinned in releases:
        return []
    return [Problem(PIN, f"pins release {pinned}, which does not exist; `gemel unpin` serves HEAD again")]


def _of_blobs(store: Store) -> list[Problem]:
    problems = []
    for sha in store.blobs():
        try:
            store.read_blob(sha)
        except StoreError as error:
            problems.append(Problem(blob_name(sha), str(error)))
    return problems

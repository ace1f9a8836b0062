"""Everything that can be wrong with a store, found by reading all of it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemel_ray.spec.errors import StoreError
from gemel_ray.weights.lineage import parent_of
from gemel_ray.weights.names import LINEAGE, PIN, blob_name, manifest_name, state_name
from gemel_ray.weights.searches import needs_of

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
    looks = (_of_releases, _of_lineage, _of_head, _of_pin, _of_searches, _of_blobs)
    return [problem for look in looks for problem in look(store)] + leftovers


def _of_releases(store: Store) -> list[Problem]:
    problems = []
    for number in store.releases():
        try:
            manifest = store.manifest(number)
            parent_of(store, manifest)
        except StoreError as error:
            problems.append(Problem(manifest_name(number), str(error)))
            continue
        lost = (sha for sha in sorted(manifest.blobs) if not store.has_blob(sha))
        problems += [Problem(blob_name(sha), f"missing, needed by release {number}") for sha in lost]
    return problems


def _of_lineage(store: Store) -> list[Problem]:
    """Damage, and releases that others were made from and that are neither there nor known to be removed."""
    numbers, problems = store.releases(), []
    try:
        known = {*numbers, *store.removed_parents()}
    except StoreError as error:
        return [Problem(LINEAGE, str(error))]
    for number in numbers:
        # What cannot be read, and a parent that is no earlier release, was found above.
        with contextlib.suppress(StoreError):
            parent = parent_of(store, store.manifest(number))
            if parent is not None and parent not in known:
                told = f"its parent, release {parent}, is not there; copy {manifest_name(parent)} back"
                problems.append(Problem(manifest_name(number), told))
    return problems


def _of_head(store: Store) -> list[Problem]:
    try:
        head, releases = store.head(), store.releases()
    except StoreError as error:
        return [Problem("HEAD", str(error))]
    if head is None and releases:
        return [Problem("HEAD", f"is missing; write the release to serve into it, one of {releases}")]
    if head is not None and head not in releases:
        told = f"points at release {head}, which does not exist; releases: {releases or 'none'}"
        return [Problem("HEAD", f"{told}; `gemel revert --to N` makes another one HEAD")]
    return []


def _of_pin(store: Store) -> list[Problem]:
    try:
        pinned = store.pinned()
    except StoreError as error:
        return [Problem(PIN, str(error))]
    if pinned is None or pinned in store.releases():
        return []
    return [Problem(PIN, f"pins release {pinned}, which does not exist; `gemel unpin` serves HEAD again")]


def _of_searches(store: Store) -> list[Problem]:
    problems = []
    for name in store.searches():
        try:
            needs_of(store, name)
        except StoreError as error:
            problems.append(Problem(state_name(name), str(error)))
    return problems


def _of_blobs(store: Store) -> list[Problem]:
    problems = []
    for sha in store.blobs():
        try:
            store.read_blob(sha)
        except StoreError as error:
            problems.append(Problem(blob_name(sha), str(error)))
    return problems

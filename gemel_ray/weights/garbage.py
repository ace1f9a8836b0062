"""Removing what nothing needs any more from a store."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from gemel_ray.spec.errors import InputError, StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.weights.files import Entry
from gemel_ray.weights.lineage import parent_of, root_of
from gemel_ray.weights.names import LINEAGE, manifest_name
from gemel_ray.weights.searches import SearchNeeds, needs_of
from gemel_ray.weights.store import Store

# A search puts a candidate's blobs minutes before it publishes them; a day leaves room for what was interrupted.
GRACE_HOURS = 24.0
# A leftover younger than this may be a file that somebody is writing at this moment.
_WRITING_HOURS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Garbage:
    """What nothing needs any more. `young` blobs are unused too, and are spared until the grace period is over."""

    releases: tuple[int, ...]
    blobs: tuple[Entry, ...]
    leftovers: tuple[Entry, ...]
    young: tuple[Entry, ...]

    @property
    def freed_bytes(self) -> int:
        """Bytes of the blobs and leftovers that go."""
        return sum(entry.file_bytes for entry in (*self.blobs, *self.leftovers))


def collect_garbage(
    store: Store, *, keep: int | None = None, grace_hours: float = GRACE_HOURS, dry_run: bool = False
) -> Garbage:
    """Remove blobs that no release names and leftovers of interrupted writes, older than the grace period.

    With `keep`, releases go as well, except for the newest so many, HEAD, a pinned one, those that an unfinished
    search goes on from, and the originals of all these. Blobs that an unfinished search has yet to publish stay.
    Publishers on a local disk wait meanwhile; on other file systems the grace period alone protects what they have
    put. Raises StoreError, and removes nothing, where a manifest or a search's state cannot be read, or a
    release is lost that HEAD, PIN or a child names.
    """
    if grace_hours < 0 or (keep is not None and keep < 1):
        raise InputError(f"keep {keep}, grace {grace_hours} hours: keep at least 1 release, and 0 hours or more")
    if dry_run:
        return _find_garbage(store, keep, grace_hours)
    with store.exclusively():
        garbage = _find_garbage(store, keep, grace_hours)
        # Killed in between, this leaves blobs without a manifest, which the next run finds; never the reverse.
        store.remove_releases(garbage.releases)
        store.remove_files((*garbage.blobs, *garbage.leftovers))
    _log.info(
        "removed %d releases, %d blobs and %d leftovers, %d bytes",
        len(garbage.releases), len(garbage.blobs), len(garbage.leftovers), garbage.freed_bytes,
    )  # fmt: skip
    return garbage


def _find_garbage(store: Store, keep: int | None, grace_hours: float) -> Garbage:
    # Files before manifests: what is put and published in between is not among the files.
    blobs, leftovers = store.blobs(), store.leftovers()
    try:
        searches = [needs_of(store, name) for name in store.searches()]
        releases = {number: store.manifest(number) for number in store.releases()}
        kept = _kept(store, releases, searches, keep)
    except StoreError as error:
        raise StoreError(f"nothing was removed, since not all that may be needed can be read: {error}") from error
    used = {sha for number in kept for sha in releases[number].blobs}.union(*(search.blobs for search in searches))
    until_s = time.time() - 3600 * grace_hours
    written_until_s = min(until_s, time.time() - 3600 * _WRITING_HOURS)
    unused = [entry for sha, entry in blobs.items() if sha not in used]
    return Garbage(
        releases=tuple(number for number in releases if number not in kept),
        blobs=tuple(entry for entry in unused if entry.written_s <= until_s),
        leftovers=tuple(entry for entry in leftovers if entry.written_s <= written_until_s),
        young=tuple(entry for entry in unused if entry.written_s > until_s),
    )


def _kept(store: Store, releases: dict[int, Manifest], searches: list[SearchNeeds], keep: int | None) -> set[int]:
    """The releases that stay. StoreError where one is named, by HEAD, PIN or a child, that is not there."""
    wanted = set(sorted(releases)[-keep:] if keep else releases) | _named(store, needs_head=keep is not None)
    for search in searches:
        wanted |= _awaited(search, releases)
    parents = store.removed_parents() | {number: parent_of(store, manifest) for number, manifest in releases.items()}
    roots = {_known_root(number, parents) for number in wanted & releases.keys()}
    return (wanted | roots) & releases.keys()


def _named(store: Store, *, needs_head: bool) -> set[int]:
    """The releases of HEAD and PIN; their manifests are looked for, since blobs of a lost one would count as unused."""
    head, pinned = store.head(), store.pinned()
    found = {store.manifest(pinned).release} if pinned is not None else set()
    return found | {store.manifest().release} if needs_head or head is not None else found


def _known_root(release: int, parents: Mapping[int, int | None]) -> int:
    root = root_of(release, parents)
    if root in parents:
        return root
    raise StoreError(
        f"release {root}, from which release {release} descends, is not there, and {LINEAGE} does not tell its parent; "
        f'copy {manifest_name(root)} back. Where it is gone for good, write {{"{root}": N}} into {LINEAGE}, beside '
        "what it tells already: N is the release that it was made from, null where it was the originals"
    )


def _awaited(search: SearchNeeds, releases: dict[int, Manifest]) -> set[int]:
    """The releases that an unfinished search goes on from, the last it published among them."""
    if not search.releases:
        return set()
    own = [number for number, found in releases.items() if found.provenance.trial.get("search") == search.name]
    return {*search.releases, *own[-1:]}

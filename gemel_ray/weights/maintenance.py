"""Keeping a store: going back to earlier weights, and removing what nothing needs any more."""

from __future__ import annotations

import contextlib
import logging
import platform
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from gemel_ray.spec.errors import (
    CorruptBlobError,
    InputError,
    MissingBlobError,
    MissingReleaseError,
    StoreError,
    nearest,
)
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Manifest, Provenance, ReleasedQuery
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


def revert_head(store: Store, to: int | None = None) -> Manifest:
    """Make a release HEAD, the parent of HEAD by default.

    MissingReleaseError names the releases there are, and so does StoreError where HEAD or its parent cannot be read;
    MissingBlobError and CorruptBlobError (of another length than it should be) leave HEAD where it is. InputError while
    a release is pinned.
    """
    check_unpinned(store)
    manifest = _before_head(store) if to is None else store.manifest(to)
    _check_whole(store, manifest, "HEAD stays")
    store.set_head(manifest.release)
    return manifest


def pin(store: Store, release: int | None = None) -> Manifest:
    """Let a release be served whatever is published later, by default the one that is to be served now.

    MissingReleaseError names the releases there are; MissingBlobError and CorruptBlobError leave the pin as it is.
    """
    manifest = store.manifest(store.wanted() if release is None else release)
    _check_whole(store, manifest, "it was not pinned")
    store.set_pin(manifest.release)
    return manifest


def unpin(store: Store) -> Manifest:
    """Let HEAD be served again: the release that is."""
    manifest = store.manifest()
    store.set_pin(None)
    return manifest


def check_unpinned(store: Store) -> None:
    """Raise InputError while a release is pinned: what is made HEAD then would not be served."""
    if (pinned := store.pinned()) is not None:
        raise InputError(f"release {pinned} is pinned and stays; `gemel unpin` first, and nothing was changed")


def _check_whole(store: Store, manifest: Manifest, told: str) -> None:
    for sha, info in sorted(manifest.blobs.items()):
        if store.blob_bytes(sha) == info.file_bytes:
            continue
        try:
            store.read_blob(sha)
        except (MissingBlobError, CorruptBlobError) as error:
            what = "missing" if isinstance(error, MissingBlobError) else "damaged"
            raise type(error)(
                f"{store.locate_blob(sha)} is {what}, and release {manifest.release} needs it; {told}. Restore it "
                "from a copy of the store, or choose another release (`gemel verify` lists all damage)"
            ) from error


def _before_head(store: Store) -> Manifest:
    """HEAD's parent. StoreError says which releases there are to go to instead."""
    try:
        head = store.manifest()
        parent = parent_of(store, head)
        if parent in store.releases():
            return store.manifest(parent)
    except StoreError as error:
        told = f"the release before HEAD cannot be read; say --to with one of {_readable(store)}"
        raise type(error)(f"{store.locate()}: {told}. {error}") from error
    why = f"HEAD is release {head.release}, which has no parent"
    if parent is not None:
        why = f"release {parent}, the parent of HEAD ({head.release}), was removed"
    raise MissingReleaseError(f"{store.locate()}: {why}; say --to with one of {_readable(store)}")


def _readable(store: Store) -> list[int]:
    """The releases whose manifests can be read."""
    found = []
    for number in store.releases():
        with contextlib.suppress(StoreError):
            found.append(store.manifest(number).release)
    return found


def revert_queries(store: Store, names: Collection[str], base: int | None = None) -> Manifest:
    """Publish a release like `base` (HEAD by default) in which the named queries run their originals again.

    Raises what `reverted` raises, InputError while a release is pinned, and MissingReleaseError where the release of
    the originals is gone.
    """
    check_unpinned(store)
    manifest = store.manifest(base)
    return store.publish(reverted(manifest, originals_of(store, manifest), names))


def reverted(manifest: Manifest, root: Manifest, names: Collection[str]) -> Manifest:
    """A release like another one, not published yet, in which the named queries run their originals of `root` again.

    The others keep their weights, also where they alone still use a once shared copy. Raises InputError for a query
    that either release lacks or when all named ones run their originals already.
    """
    _check_revertible(manifest, root, names)
    queries = manifest.queries | {name: _original(manifest.queries[name], root.queries[name]) for name in names}
    used = {sha for released in queries.values() for sha in released.weights.values()}
    blobs = {sha: info for sha, info in (manifest.blobs | root.blobs).items() if sha in used}
    changed = {
        "parent": manifest.release,
        "queries": queries,
        "merge_configuration": _without_queries(manifest.merge_configuration, names),
        "blobs": blobs,
        "bytes_after": sum(info.tensor_bytes for info in blobs.values()),
        "provenance": _provenance(manifest, root, names),
    }
    return Manifest.model_validate(dict(manifest) | changed)


def originals_of(store: Store, manifest: Manifest) -> Manifest:
    """The release of the originals that a release descends from. MissingReleaseError where it is gone."""
    number = store.lineage(manifest.release)[-1]
    try:
        return store.manifest(number)
    except MissingReleaseError as error:
        raise MissingReleaseError(
            f"{store.locate()}: release {number}, from which release {manifest.release} descends, is gone, and the "
            f"originals with it; {error}. Restore it from a copy of the store, or search anew"
        ) from error


def _check_revertible(manifest: Manifest, root: Manifest, names: Collection[str]) -> None:
    for name in names:
        if name not in manifest.queries or name not in root.queries:
            lacking = root if name in manifest.queries else manifest
            known = manifest.queries.keys() & root.queries.keys()
            raise InputError(f"query {name!r}: release {lacking.release} has none of that name; {nearest(name, known)}")
    if all(manifest.queries[name].weights == root.queries[name].weights for name in names):
        already = f"runs its original in release {manifest.release} already"
        raise InputError(f"query {', '.join(names)}: {already}; nothing was published")


def _original(released: ReleasedQuery, original: ReleasedQuery) -> ReleasedQuery:
    changed = {"weights": original.weights, "slices": original.slices, "accuracy": original.accuracy}
    return released.model_copy(update=changed)


def _without_queries(configuration: MergeConfiguration, names: Collection[str]) -> MergeConfiguration:
    """The configuration without these queries' layers; what is left with one member shares nothing."""
    left = (layer.among(_others(layer.members, names)) for layer in configuration.shared)
    return MergeConfiguration(shared=tuple(layer for layer in left if layer))


def _others(members: Iterable[LayerRef], names: Collection[str]) -> list[LayerRef]:
    return [member for member in members if member.query not in names]


def _provenance(base: Manifest, root: Manifest, names: Iterable[str]) -> Provenance:
    reverted = ", ".join(names)
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join(sys.argv),
        seed=base.provenance.seed,
        versions={"gemel-ray": version("gemel-ray"), "python": platform.python_version()},
        note=f"reverted to their originals: {reverted}",
        trial={"reverted": reverted, "base": base.release, "originals": root.release},
    )


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

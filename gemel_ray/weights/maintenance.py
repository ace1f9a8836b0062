"""Keeping a store: going back to earlier weights, and letting a release stay."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Callable, Collection, Iterable
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
from gemel_ray.spec.uris import shown_command
from gemel_ray.weights.lineage import parent_of
from gemel_ray.weights.store import Store


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
    made = _published(store, base, lambda manifest: reverted(manifest, originals_of(store, manifest), names))
    assert made is not None, "there is always something to publish"
    return made


def revert_served(store: Store, serving: Manifest, query: str) -> Manifest | None:
    """Publish a release like HEAD in which a query that somebody serves runs its original again; None, and nothing is
    published, where HEAD has other weights of it by now. Raises what `revert_queries` raises."""

    def made_of(head: Manifest) -> Manifest | None:
        released = head.queries.get(query)
        if released is None or released.weights != serving.queries[query].weights:
            return None
        return reverted(head, originals_of(store, head), [query])

    return _published(store, None, made_of)


def _published(store: Store, base: int | None, made_of: Callable[[Manifest], Manifest | None]) -> Manifest | None:
    """Publish what is made of `base`, by default of HEAD: of the one that there is when it is published, so that of two
    who do this at once neither undoes what the other did."""
    # Read before it is locked: locking makes the folder of a store that is away, such as one that is not mounted.
    store.manifest(base)
    while True:
        with store.exclusively():
            check_unpinned(store)
            head = store.head()
            made = made_of(store.manifest(head if base is None else base))
            # Nobody is kept out of an object store: who has been there meanwhile may have made another release HEAD.
            if made is None or base is not None or store.head() == head:
                return made and store.publish_within(made)


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
        command=shown_command(sys.argv),
        seed=base.provenance.seed,
        versions={"gemel-ray": version("gemel-ray"), "python": platform.python_version()},
        note=f"reverted to their originals: {reverted}",
        trial={"reverted": reverted, "base": base.release, "originals": root.release},
    )

"""An edge box that follows a store: what HEAD names is brought to local disk, and what was good stays there."""

from __future__ import annotations

import logging
from pathlib import Path

from gemel_ray.policy.transition import restricted
from gemel_ray.spec.errors import InputError, StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.weights.cache import Fetched, LocalCache
from gemel_ray.weights.maintenance import originals_of, revert_served
from gemel_ray.weights.store import Store, open_store

_ORIGINALS = "originals.json"
_log = logging.getLogger(__name__)


class Follower:
    """Asks one store for its HEAD (or always the same release) and keeps it in a folder of this box's own disk.

    The store may be away at any time, from the start on. For one thread at a time, `fetch` excepted.
    """

    def __init__(self, store: str, folder: str | Path, *, release: int | None = None) -> None:
        self._uri = store
        self._folder = Path(folder)
        self._release = release
        self._store: Store | None = None
        # The release that the store had pinned when it was last asked.
        self.pinned: int | None = None
        self._cache = LocalCache(None, self._folder)

    @property
    def store(self) -> Store:
        """The store itself. StoreError where it cannot be reached."""
        if self._store is None:
            self._store = open_store(self._uri)
            self._cache = LocalCache(self._store, self._folder)
        return self._store

    def last_good(self) -> Manifest | None:
        """The release that was served last, None where there was none, or another one is asked for."""
        try:
            last = self._cache.last_manifest()
        except StoreError as error:
            _log.warning("the last good release is lost: %s", error)
            return None
        return last if last is None or self._release in (None, last.release) else None

    def news(self, serving: int | None) -> Manifest | None:
        """The release to serve; None where it is the one being served. Of a store that has not moved, a few bytes are
        read. Raises StoreError where it cannot be reached or has no such release."""
        if self._release is None:
            self.pinned = self.store.pinned()
        wanted = self._release or self.pinned or self.store.head()
        return None if wanted is not None and wanted == serving else self.store.manifest(wanted)

    def bring(self, manifest: Manifest) -> Fetched:
        """Have all blobs of a release on local disk. Raises StoreError for what is missing or damaged in the store;
        what came whole stays here for the next attempt."""
        came = self._cache.bring(manifest)
        _log.info("release %d is here: %d blobs, %d bytes came", manifest.release, came.blobs, came.bytes)
        return came

    def fetch(self, sha: str) -> Path:
        """The verified local file of a blob. Raises StoreError."""
        return self._cache.fetch(sha)

    def originals(self, manifest: Manifest) -> Manifest:
        """The originals of a release's queries, whole on local disk; those kept there where the store is away.

        Raises StoreError where neither has them.
        """
        kept = LocalCache(self._store, self._folder, last=_ORIGINALS)
        try:
            root = originals_of(self.store, manifest)
            root = restricted(root, root.queries.keys() & manifest.queries.keys())
            self._cache.bring(root)
            kept.save_manifest(root)
        except StoreError:
            last = kept.last_manifest()
            # Of another workload, they would be other models of the same names.
            if last is None or last.workload_hash != manifest.workload_hash:
                raise
            return last
        return root

    def revert(self, manifest: Manifest, query: str) -> int | None:
        """Publish a release in which a query runs its original again; None, and nothing is published, where HEAD has
        other weights of it by now.

        Raises StoreError where the store cannot be written, InputError where HEAD is not followed.
        """
        if self._release is not None:
            raise InputError(f"this box stays with release {self._release}")
        published = revert_served(self.store, manifest, query)
        return published.release if published else None

    def settle(self, manifest: Manifest) -> None:
        """This release is being served: it is the one to start with the next time, and what neither it, nor the one
        before, nor originals need goes. Raises StoreError."""
        self._cache.settle(manifest)

"""What an edge box keeps on its own disk: verified copies of blobs, and the last release that was complete."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gemel_ray.spec.errors import MissingBlobError, StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.strict import explain
from gemel_ray.weights.files import Files
from gemel_ray.weights.names import blob_name
from gemel_ray.weights.store import Store

_LAST = "last_release.json"
# A blob that was asked for of late may belong to a release that somebody brings in at this moment.
_YOUNG_S = 3600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What had to come from the store: number and bytes of files that were not here, or damaged."""

    blobs: int = 0
    bytes: int = 0


class LocalCache:
    """A store's blobs on local disk, fetched once. Goes on without the store for everything that is here already.

    `store` is None where the store could not be opened at all, such as after a reboot without network.
    """

    def __init__(self, store: Store | None, folder: str | Path, *, last: str = _LAST) -> None:
        """`last` is the file of the last good release; engines that share a folder have one each."""
        self._store = store
        self._last = last
        self._files = Files.at(Path(folder))
        self._held = Store(self._files)

    def fetch(self, sha: str) -> Path:
        """The verified local file of a blob, copied from the store where it is not here or damaged.

        Raises StoreError where the store does not give it.
        """
        self._bring(sha)
        return Path(self._held.locate_blob(sha))

    def _bring(self, sha: str) -> bool:
        """Whether the blob had to be copied from the store."""
        self._freshen(sha)
        if self._is_whole(sha):
            return False
        self._held.put_blob(self._reachable(sha).read_blob(sha))
        return True

    def read_manifest(self, release: int | None = None) -> Manifest:
        """A release's manifest from the store, by default the one to serve. Raises StoreError; nothing is kept."""
        store = self._reachable("a release")
        return store.manifest(store.wanted() if release is None else release)

    def bring(self, manifest: Manifest) -> Fetched:
        """Have all blobs of a release here and whole, copying only what is missing. StoreError where one cannot be had;
        what came by then stays, for the next attempt."""
        came = [sha for sha in sorted(manifest.blobs) if self._bring(sha)]
        return Fetched(len(came), sum(manifest.blobs[sha].file_bytes for sha in came))

    def pull(self, release: int | None = None) -> Manifest:
        """Fetch a release (by default the one to serve) whole and make it the last good one.

        Where the store cannot be read or the release is incomplete, the last good one comes back instead and a
        warning is logged; the StoreError is raised only where there is none.
        """
        try:
            manifest = self.read_manifest(release)
            self.bring(manifest)
            self.save_manifest(manifest)
        except StoreError as error:
            last = self.last_manifest()
            if last is None or release not in (None, last.release):
                raise
            _log.warning("serving release %d from local disk: %s", last.release, error)
            return last
        return manifest

    def save_manifest(self, manifest: Manifest) -> None:
        """Make a release the last good one. MissingBlobError, and the former stays, unless all its blobs are here."""
        for sha in sorted(manifest.blobs):
            if not self._held.has_blob(sha):
                raise MissingBlobError(f"{self._held.locate_blob(sha)} is missing; fetch the release's blobs first")
        self._files.write(self._last, manifest.model_dump_json(indent=1).encode())

    def settle(self, manifest: Manifest, also: Iterable[Manifest] = ()) -> None:
        """Make a release the last good one, keep the one before it, and delete the blobs that no release needs which is
        written down here, by this engine or others that share the folder, nor one of `also`.

        Raises what `save_manifest` raises. Killed in between, it leaves too much, which goes the next time.
        """
        with contextlib.suppress(StoreError):
            before = self.last_manifest()
            if before is not None and before.release != manifest.release:
                self._files.write(f"former-{self._last}", before.model_dump_json(indent=1).encode())
        self.save_manifest(manifest)
        try:
            self._sweep({sha for found in also for sha in found.blobs})
        except StoreError as error:
            _log.warning("what no release needs any more was not deleted: %s", error)

    def _sweep(self, needed: set[str]) -> None:
        if self._files.exists("HEAD") or self._files.names("releases"):
            # A store of its own, which others publish into and `gemel gc` cleans.
            return
        needed |= self._needed_here()
        unused = [entry for sha, entry in self._held.blobs().items() if sha not in needed]
        # Asked one by one, just before: somebody may have come to need one.
        gone = [entry for entry in (*unused, *self._held.leftovers()) if self._files.age_s(entry.name) > _YOUNG_S]
        self._held.remove_files(gone)
        if gone:
            freed = sum(entry.file_bytes for entry in gone)
            _log.info("deleted %d blobs that no release needs any more, %d bytes", len(gone), freed)

    def _needed_here(self) -> set[str]:
        """Blobs of all releases that are written down in this folder. StoreError, and nothing is to be deleted, where
        one cannot be read."""
        found: set[str] = set()
        for path in sorted(Path(self._files.locate("")).glob("*.json")):
            try:
                document = json.loads(self._files.read(path.name) or b"{}")
            except ValueError as error:
                raise StoreError(f"{path} is damaged, and may name some of it; delete it") from error
            # Events and costs lie here too.
            blobs = document.get("blobs") if isinstance(document, dict) else None
            found |= set(blobs) if isinstance(blobs, dict) else set()
        return found

    def last_manifest(self) -> Manifest | None:
        """The last good release, None where there was none yet. StoreError where its file is damaged."""
        data = self._files.read(self._last)
        if data is None:
            return None
        try:
            return Manifest.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(
                f"{self._files.locate(self._last)} is damaged; delete it and pull the release again:\n"
                f"{explain(error, Manifest)}"
            ) from error

    def _freshen(self, sha: str) -> None:
        # A disk that can only be read gives its blobs all the same.
        with contextlib.suppress(StoreError):
            if self._files.age_s(blob_name(sha)) > _YOUNG_S / 2:
                self._files.freshen(blob_name(sha))

    def _is_whole(self, sha: str) -> bool:
        try:
            self._held.read_blob(sha)
        except MissingBlobError:
            return False
        except StoreError as error:
            # Damaged, or on a part of the disk that fails: written anew, it lies elsewhere.
            _log.warning("fetching a blob again: %s", error)
            return False
        return True

    def _reachable(self, wanted: str) -> Store:
        if self._store is None:
            raise StoreError(
                f"{wanted} is not on local disk ({self._files.locate('')}) and the store cannot be reached; "
                "restore the connection to the store"
            )
        return self._store

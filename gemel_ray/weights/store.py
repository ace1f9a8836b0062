"""A store: content-addressed blobs, immutable releases, and HEAD, the release to serve.

blobs/sha256/ab/abcd....safetensors    written once, verified on read
releases/000007.json                   one manifest each
HEAD                                   replaced atomically, last of all
PIN                                    a release that is to be served whatever HEAD says, or "none"; replaced atomically
searches/NAME.json                     what a search needs to be taken up again
lineage.json                           parents of releases that `gemel gc` removed, so that roots are still found
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gemel_ray.spec.errors import CorruptBlobError, MissingBlobError, MissingReleaseError, StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.strict import explain
from gemel_ray.weights.files import LOCK, Entry, Files
from gemel_ray.weights.lineage import LINEAGE_WAY_OUT, parent_of, release_number, removed_parents
from gemel_ray.weights.names import LINEAGE, PIN, STATE, blob_name, manifest_name, state_name
from gemel_ray.weights.verification import Problem, problems_of

_MANIFEST = re.compile(r"releases/([0-9]{6,})\.json")
_BLOB = re.compile(r"blobs/sha256/[0-9a-f]{2}/([0-9a-f]{64})\.safetensors")
_NONE = "none"
# What else to do where the release that one of them names cannot be had; services look at PIN first.
_INSTEAD = {PIN: "let it go (`gemel unpin`)", "HEAD": "write another number into HEAD (`gemel revert --to N`)"}
# A blob that is put again after so long counts as new, or `gemel gc` could take it before it is published.
_FRESH_S = 3600.0
_log = logging.getLogger(__name__)


def open_store(uri: str | Path, *, create: bool = False) -> Store:
    """Open a store at a folder or a pyarrow.fs URI; StoreError where there is none, unless it is to be created.

    InputError for what is no URI of a store.
    """
    files = Files.at(uri)
    if not create and not files.exists("HEAD") and not (files.can_list and files.names("releases")):
        raise StoreError(f"{files.locate('')} holds no releases; make some with `gemel demo` or `gemel search`")
    return Store(files)


class Store:
    """One store. Every read is verified; every write is whole or absent."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def locate(self, name: str = "") -> str:
        """The full path of something in the store, for messages."""
        return self._files.locate(name)

    def locate_blob(self, sha: str) -> str:
        """The full path of a blob, whether it is there or not."""
        return self.locate(blob_name(sha))

    # blobs

    def put_blob(self, data: bytes) -> str:
        """Store bytes under their SHA-256 and return it. A leftover of that name that is damaged, or cannot be read, is
        replaced."""
        sha = hashlib.sha256(data).hexdigest()
        name = blob_name(sha)
        if not self._holds(name, data):
            self._files.write(name, data)
        elif self._files.age_s(name) > _FRESH_S:
            self._files.freshen(name)
        return sha

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self._files.read(name) == data
        except StoreError:
            return False

    def has_blob(self, sha: str) -> bool:
        """Whether the store holds a blob of that name; its bytes are not looked at."""
        return self._files.exists(blob_name(sha))

    def read_blob(self, sha: str) -> bytes:
        """A blob's bytes, verified. Raises MissingBlobError or CorruptBlobError."""
        data = self._files.read(blob_name(sha))
        path = self.locate_blob(sha)
        if data is None:
            raise MissingBlobError(f"{path} is missing; restore it from a copy of the store, or run the search again")
        found = hashlib.sha256(data).hexdigest()
        if found != sha:
            raise CorruptBlobError(
                f"{path} is damaged: {len(data)} bytes hash to {found[:12]}..., not to their name; restore the file "
                "from a copy of the store (`gemel verify` lists all damage)"
            )
        return data

    def blob_bytes(self, sha: str) -> int | None:
        """How long a blob's file is, None where there is none."""
        return self._files.size(blob_name(sha))

    # releases

    def releases(self) -> list[int]:
        """Numbers of all releases, ascending."""
        matches = (_MANIFEST.fullmatch(name) for name in self._files.names("releases"))
        return sorted(int(match[1]) for match in matches if match)

    def head(self) -> int | None:
        """The release to serve; None where nothing was published yet. StoreError where HEAD is unreadable."""
        return self._number("HEAD")

    def pinned(self) -> int | None:
        """The release that stays whatever is published; None where none is pinned. StoreError where PIN is unreadable.

        A file of its own: whoever publishes writes HEAD, and must not undo a pin that was set meanwhile.
        """
        return self._number(PIN)

    def wanted(self) -> int | None:
        """The release to serve: the pinned one, else HEAD; None where nothing was published yet."""
        pinned = self.pinned()
        return self.head() if pinned is None else pinned

    def _number(self, name: str) -> int | None:
        data = self._files.read(name)
        text = "" if data is None else data.decode(errors="replace").strip()
        if data is None or (name == PIN and text == _NONE):
            return None
        if (number := release_number(text)) is None:
            told = f"says {text[:40]!r}, not a release number{self._held('write one of')}; or {_INSTEAD[name]}"
            raise StoreError(f"{self.locate(name)} {told}")
        return number

    def manifest(self, release: int | None = None) -> Manifest:
        """A release's manifest, HEAD's by default. Raises MissingReleaseError or StoreError."""
        number = self.head() if release is None else release
        if number is None:
            raise MissingReleaseError(f"{self.locate()} HEAD names no release yet{self._held()}")
        path, data = self.locate(manifest_name(number)), self._files.read(manifest_name(number))
        if data is None:
            named, instead = self._asked_for(number)
            way_out = f"; copy {manifest_name(number)} back{instead}" if named else ""
            raise MissingReleaseError(f"{self.locate()} has no release {number}{named}{self._held()}{way_out}")
        try:
            found = Manifest.model_validate_json(data)
        except ValidationError as error:
            way_out = f"restore it from a copy of the store{self._asked_for(number)[1]}:\n{explain(error, Manifest)}"
            raise StoreError(f"{path} is not a manifest this version can read; {way_out}") from error
        if found.release != number:
            raise StoreError(f"{path} describes release {found.release}; a release's file must keep its name")
        return found

    def _asked_for(self, number: int) -> tuple[str, str]:
        """Of a release that cannot be had: who asks for it to be served, and what else to do; empty where nobody."""
        for name, instead in _INSTEAD.items():
            if (self._files.read(name) or b"").strip() == str(number).encode():
                return f", which {name} names", f", or {instead}"
        return "", ""

    def _held(self, words: str = "it holds") -> str:
        return f"; {words} {self.releases() or 'none'}" if self._files.can_list else ""

    def next_release(self) -> int:
        """The number the next release would get; another publisher may take it first."""
        return max(self.releases(), default=0) + 1

    def publish(self, manifest: Manifest, *, head: bool = True) -> Manifest:
        """Write a manifest and make it HEAD; it comes back with the number it got, the next free one.

        Publishers on one local disk wait for each other, so that HEAD never goes back to an earlier one's release.
        Raises MissingBlobError, and publishes nothing, when a blob it names is absent.
        """
        with self._files.exclusively():
            return self.publish_within(manifest, head=head)

    def publish_within(self, manifest: Manifest, *, head: bool = True) -> Manifest:
        """`publish`, for one who keeps other publishers out already."""
        for sha in sorted(manifest.blobs):
            if not self.has_blob(sha):
                raise MissingBlobError(f"{self.locate_blob(sha)} is missing; put the blobs before the manifest")
        numbered = self._write_manifest(manifest)
        if head:
            self._write_head(numbered.release)
        _log.info(
            "published release %d of %s: %d bytes, %d unmerged",
            numbered.release, numbered.workload_name, numbered.bytes_after, numbered.bytes_before,
        )  # fmt: skip
        return numbered

    def _write_manifest(self, manifest: Manifest) -> Manifest:
        while True:
            number = self.next_release()
            numbered = manifest.model_copy(update={"release": number})
            if self._files.create(manifest_name(number), numbered.model_dump_json(indent=1).encode()):
                return numbered

    def set_head(self, release: int) -> None:
        """Make an existing release the one to serve."""
        with self._files.exclusively():
            self._check_there(release)
            self._write_head(release)

    def set_pin(self, release: int | None) -> None:
        """Let an existing release be served whatever HEAD says, or HEAD again."""
        with self._files.exclusively():
            if release is not None:
                self._check_there(release)
            # Unpinned is written too: some web servers answer for what is not there as for what is forbidden.
            self._files.write(PIN, f"{_NONE if release is None else release}\n".encode())

    def _check_there(self, release: int) -> None:
        if not self._files.exists(manifest_name(release)):
            raise MissingReleaseError(f"{self.locate()} has no release {release}; it holds {self.releases()}")

    def _write_head(self, release: int) -> None:
        self._files.write("HEAD", f"{release}\n".encode())

    def lineage(self, release: int) -> list[int]:
        """The release, its parent, and so on to the root (the originals); ends early where a manifest was lost.

        StoreError where a manifest or lineage.json is damaged.
        """
        removed, found = self.removed_parents(), [release]
        while True:
            # Asked for one by one: a store read over HTTP cannot be listed.
            try:
                parent = parent_of(self, self.manifest(found[-1]))
            except MissingReleaseError:
                parent = removed.get(found[-1])
            if parent is None:
                return found
            found.append(parent)

    def removed_parents(self) -> dict[int, int | None]:
        """The releases that `gemel gc` removed, and their parents. StoreError where that cannot be read."""
        return removed_parents(self._files.read_json(LINEAGE, LINEAGE_WAY_OUT) or {}, self.locate(LINEAGE))

    # searches

    def read_state(self, name: str) -> dict[str, Any] | None:
        """What a search wrote down last, None where there is nothing."""
        return self._files.read_json(
            state_name(name), "restore it from a copy of the store, or remove it to start that search afresh"
        )

    def write_state(self, name: str, state: dict[str, Any]) -> None:
        """Write down what a search needs to be taken up again."""
        self._files.write(state_name(name), json.dumps(state).encode())

    def searches(self) -> list[str]:
        """Names of all searches whose state the store holds."""
        names = (Path(name) for name in self._files.names("searches"))
        return [path.stem for path in names if path.suffix == ".json" and STATE.fullmatch(path.stem)]

    # maintenance

    def exclusively(self, lock: str = LOCK, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Keep publishers, or others that ask for that lock, out meanwhile; see Files.exclusively. `publish` inside
        would wait for itself: there it is `publish_within`."""
        return self._files.exclusively(lock, wait=wait)

    def blobs(self) -> dict[str, Entry]:
        """All blobs by name, and the files they are."""
        found = ((_BLOB.fullmatch(entry.name), entry) for entry in self._files.entries("blobs"))
        return {match[1]: entry for match, entry in found if match}

    def leftovers(self) -> list[Entry]:
        """Files that interrupted writes left, or that are being written at this moment."""
        return [entry for entry in self._files.entries("") if Path(entry.name).name.startswith(".writing-")]

    def remove_releases(self, releases: Iterable[int]) -> None:
        """Delete manifests, after writing down their parents. Their blobs stay, and are used by them no more."""
        numbers = list(releases)
        parents = self.removed_parents() | {number: self.manifest(number).parent for number in numbers}
        if numbers:
            self._files.write(LINEAGE, json.dumps(parents).encode())
        self._files.delete(manifest_name(number) for number in numbers)

    def remove_files(self, entries: Iterable[Entry]) -> None:
        """Delete blobs or leftovers."""
        self._files.delete(entry.name for entry in entries)

    # verification

    def verify(self) -> list[Problem]:
        """Everything that is wrong with the store: damage, gaps, leftovers of interrupted writes."""
        return problems_of(self)

    def unused_blobs(self) -> list[str]:
        """Blobs that no release names: tried by a search and not accepted, or not published yet. No damage.

        Raises StoreError where a manifest cannot be read, since it may name any of them.
        """
        used = {sha for number in self.releases() for sha in self.manifest(number).blobs}
        return [sha for sha in self.blobs() if sha not in used]

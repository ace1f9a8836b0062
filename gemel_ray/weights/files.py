"""Whole files or none: the one place that writes to a store's file system."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from gemel_ray.spec.errors import InputError, StoreError
from gemel_ray.spec.uris import without_secrets
from gemel_ray.weights.http_store import HTTP_TYPE, http_system

LOCK = ".lock"


def absolute_uri(uri: str | Path) -> str:
    """The same place for processes that work in other folders."""
    text = str(uri)
    return text if "://" in text else str(Path(text).expanduser().absolute())


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its name below the root, its size, and when it was written (seconds since 1970)."""

    name: str
    file_bytes: int
    written_s: float


class Files:
    """Reads and writes whole files below one root of any pyarrow file system.

    On a local disk a file appears under its name only once it is complete and synced. Object stores give the same
    promise by themselves: an object becomes visible when its upload is closed.
    """

    def __init__(self, system: fs.FileSystem, root: str) -> None:
        self._system = system
        self._root = root.rstrip("/")
        self._local = isinstance(system, fs.LocalFileSystem)

    @classmethod
    def at(cls, uri: str | Path) -> Files:
        """Open a folder path, any URI that pyarrow.fs understands, or http(s):// to read; InputError for any other.

        StoreError where opening it fails.
        """
        text = str(uri)
        return cls(*_opened(text)) if "://" in text else cls(fs.LocalFileSystem(), absolute_uri(text))

    @property
    def can_list(self) -> bool:
        """Whether `entries` can be asked for; web servers do not list."""
        return self._system.type_name != HTTP_TYPE

    def locate(self, name: str) -> str:
        """The full path of a file, for messages."""
        return f"{self._root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        with self._told(name, "looked up"):
            return bool(self._system.get_file_info(self.locate(name)).type == fs.FileType.File)

    def size(self, name: str) -> int | None:
        """A file's length in bytes, None where there is no such file."""
        with self._told(name, "looked up"):
            info = self._system.get_file_info(self.locate(name))
        return self._entry(info).file_bytes if info.is_file else None

    def entries(self, folder: str) -> list[Entry]:
        """All files below a folder, sorted by name; empty where there is no such folder."""
        selector = fs.FileSelector(self.locate(folder).rstrip("/"), allow_not_found=True, recursive=True)
        with self._told(folder, "listed"):
            found = [self._entry(info) for info in self._system.get_file_info(selector) if info.is_file]
        return sorted(found, key=lambda entry: entry.name)

    def names(self, folder: str) -> list[str]:
        """Paths of all files below a folder, relative to the root, sorted; empty where there is no such folder."""
        return [entry.name for entry in self.entries(folder)]

    def age_s(self, name: str) -> float:
        """Seconds since a file was written; 0 where there is none, or where the file system does not say."""
        with self._told(name, "looked up"):
            info = self._system.get_file_info(self.locate(name))
        return max(time.time() - self._entry(info).written_s, 0.0)

    def _entry(self, info: fs.FileInfo) -> Entry:
        written_s = time.time() if info.mtime_ns is None else info.mtime_ns / 1e9
        return Entry(info.path[len(self._root) + 1 :], info.size or 0, written_s)

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None where there is none."""
        with self._told(name, "read"):
            try:
                with self._system.open_input_stream(self.locate(name), compression=None) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def read_json(self, name: str, way_out: str) -> dict[str, Any] | None:
        """The mapping in a JSON file, None where there is no file. StoreError, with the way out, for anything else."""
        data = self.read(name)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{self.locate(name)} is damaged ({error}); {way_out}") from error
        if not isinstance(found, dict):
            raise StoreError(f"{self.locate(name)} is damaged (it is no mapping); {way_out}")
        return found

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file in place of any of that name. StoreError (disk full, no permission) leaves nothing."""
        with self._told(name, "written"):
            if self._local:
                with self._complete(name, data) as complete:
                    os.replace(complete, self.locate(name))
                _sync_folder(Path(self.locate(name)).parent)
            else:
                self._put(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Put a whole new file in place; False, and nothing changed, where one of that name is there already.

        Exclusive on local disks. Other file systems offer no such promise through pyarrow: there the name is looked
        up first, so only one publisher at a time may work on a store.
        """
        if not self._local:
            if self.exists(name):
                return False
            self.write(name, data)
            return True
        with self._told(name, "written"), self._complete(name, data) as complete:
            try:
                os.link(complete, self.locate(name))
            except FileExistsError:
                return False
        _sync_folder(Path(self.locate(name)).parent)
        return True

    def freshen(self, name: str) -> None:
        """Make a file that is there count as just written."""
        with self._told(name, "written"):
            if self._local:
                os.utime(self.locate(name))
                return
        # Other file systems stamp a file when it is written, and offer nothing less through pyarrow.
        if (data := self.read(name)) is not None:
            self.write(name, data)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, absent ones without a word; on a local disk they stay gone should the power fail next."""
        folders = set()
        for name in names:
            with self._told(name, "deleted"), contextlib.suppress(FileNotFoundError):
                self._system.delete_file(self.locate(name))
                folders.add(Path(self.locate(name)).parent)
        for folder in folders if self._local else ():
            _sync_folder(folder)

    @contextlib.contextmanager
    def exclusively(self, lock: str = LOCK, *, wait: bool = True) -> Iterator[bool]:
        """Keep others that ask for the same out meanwhile; local disks only, a dead process lets go.

        Whether nobody has it: always, unless told not to `wait`.
        """
        if not self._local:
            yield True
            return
        with self._told(lock, "locked"):
            Path(self.locate(lock)).parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.locate(lock), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield self._is_locked(lock, descriptor, wait=wait)
        finally:
            os.close(descriptor)

    def _is_locked(self, lock: str, descriptor: int, *, wait: bool) -> bool:
        with self._told(lock, "locked"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def _put(self, name: str, data: bytes) -> None:
        path = self.locate(name)
        try:
            stream = self._system.open_output_stream(path, compression=None)
        except FileNotFoundError:
            # Object stores have no folders; other remote file systems want theirs made first.
            self._system.create_dir(path.rpartition("/")[0], recursive=True)
            stream = self._system.open_output_stream(path, compression=None)
        with stream:
            stream.write(data)

    @contextlib.contextmanager
    def _complete(self, name: str, data: bytes) -> Iterator[str]:
        """A synced temporary file beside the final name, gone afterwards unless it was moved."""
        folder = Path(self.locate(name)).parent
        folder.mkdir(parents=True, exist_ok=True)
        path = str(folder / f".writing-{secrets.token_hex(8)}")
        # Readable for whom the user's umask says, unlike what tempfile makes: an edge box may run as somebody else.
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    @contextlib.contextmanager
    def _told(self, name: str, done: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reading = done in ("read", "listed", "looked up")
            way_out = (
                "check the address, the connection and the permissions"
                if reading
                else "free space or correct permissions there and run the command again (nothing half-written is left)"
            )
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"{self.locate(name)} cannot be {done}: {reason}; {way_out}") from error


def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """A file system, and the root in it."""
    try:
        over_http = uri.lower().startswith(("http://", "https://"))
        system, root = http_system(uri) if over_http else fs.FileSystem.from_uri(uri)
        if not root:
            raise ValueError("it names no bucket or folder")
    except (ValueError, NotImplementedError, OSError) as error:
        kind = StoreError if isinstance(error, OSError) else InputError
        # The URI may hold keys, and libraries repeat it; without a cause, tracebacks in logs do not.
        shown, reason = without_secrets(uri), str(error).partition("\n")[0]
        raise kind(
            f"store {shown!r} cannot be opened ({reason.replace(uri, shown)}); "
            "give a folder or a URI such as s3://... or https://..."
        ) from None
    return system, root


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that commands write for users: whole ones or none, and a former one stays until the new one is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gemel_ray.spec.errors import InputError


def write_output(path: Path, data: bytes) -> None:
    """Put a whole file in place of any of that name. InputError (disk full, no permission) leaves the former one."""
    with writing_output(path) as beside:
        beside.write_bytes(data)


def check_output(path: Path | None) -> None:
    """Raise InputError where a file could not be written, before the work of minutes that it is to keep."""
    if path is None:
        return
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not path.exists() or path.is_file():
            with tempfile.TemporaryFile(dir=nearest):
                pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written ({error.strerror or error}); free space there, or choose another place"
    )


@contextlib.contextmanager
def writing_output(path: Path) -> Iterator[Path]:
    """The file to write instead, which takes that name once the block is through, and is gone where the block failed.

    Raises InputError for an OSError, in the block too: another place is the user's to choose.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Through a link to the file itself; a terminal or a pipe is written to, never replaced.
        place = Path(os.path.realpath(path))
        if place.exists() and not place.is_file():
            yield place
        else:
            with _beside(place) as beside:
                yield beside
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    beside = place.with_name(f".writing-{secrets.token_hex(8)}")
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)

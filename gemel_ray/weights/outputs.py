"""Files that commands write for users: whole ones or none, and a former one stays until the new one is complete."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from gemel_ray.spec.errors import InputError


def write_output(path: Path, data: bytes) -> None:
    """Put a whole file in place of any of that name. InputError (disk full, no permission) leaves the former one."""
    with writing_output(path) as beside:
        beside.write_bytes(data)


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
        what = f"cannot be written ({error.strerror or error}); free space there, or choose another place"
        raise InputError(f"{path}: {what}") from error


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

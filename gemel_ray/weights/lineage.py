"""What was made from what: numbers of releases as a store's files tell them, read with suspicion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemel_ray.spec.errors import StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.weights.names import manifest_name

if TYPE_CHECKING:
    from gemel_ray.weights.store import Store

# What `int` takes besides, other scripts' digits and thousands of them, no store has written.
_NUMBER = re.compile(r"[0-9]{1,18}")
LINEAGE_WAY_OUT = "restore it from a copy of the store, or remove it and name releases with --to where a parent is gone"


def release_number(text: str) -> int | None:
    """The release that a text names, None where it names none."""
    return int(text) if _NUMBER.fullmatch(text) else None


def is_before(parent: object, release: int) -> bool:
    """Whether something can be a release's parent: none, or a lower number, since numbers only grow."""
    return parent is None or (type(parent) is int and 0 < parent < release)


def parent_of(store: Store, manifest: Manifest) -> int | None:
    """The release that one was made from, None for originals. StoreError where that is none published before."""
    if is_before(manifest.parent, manifest.release):
        return manifest.parent
    raise StoreError(
        f"{store.locate(manifest_name(manifest.release))} names release {manifest.parent} as its parent, which is no "
        "earlier one; restore the file from a copy of the store"
    )


def removed_parents(found: Mapping[str, object], path: str) -> dict[int, int | None]:
    """The parents of removed releases, as lineage.json at that path lists them. StoreError for what is no such list."""
    parents: dict[int, int | None] = {}
    for text, parent in found.items():
        number = release_number(text)
        if number is None or not is_before(parent, number):
            raise StoreError(f"{path} is damaged (see {text[:40]!r}); {LINEAGE_WAY_OUT}")
        parents[number] = parent  # type: ignore[assignment]
    return parents


def root_of(release: int, parents: Mapping[int, int | None]) -> int:
    """The release of the originals that one descends from, or the first on the way there that `parents` lacks.

    Every parent is before its release, so this ends.
    """
    while (parent := parents.get(release)) is not None:
        release = parent
    return release

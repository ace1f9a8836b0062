"""A release from its store onto this machine's disk, or the last good one when the store cannot be reached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from gemel_ray.serving.options import ServeOptions
from gemel_ray.spec.errors import StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.uris import without_secrets
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.store import open_store

log = logging.getLogger(__name__)

Fetch = Callable[[str], Path]


def pull_release(store: str, release: int | None, cache: str) -> tuple[Manifest, Fetch]:
    """A release's manifest, all its blobs on local disk, and where they lie; HEAD's when `release` is None.

    Raises StoreError when neither the store nor the local disk has the release whole.
    """
    folder = cache_folder(store, cache)
    try:
        local = LocalCache(open_store(store), folder)
    except StoreError as error:
        local = LocalCache(None, folder)
        if local.last_manifest() is None:
            raise
        log.warning("store %s cannot be opened, the last release from it is taken: %s", without_secrets(store), error)
    return local.pull(release), local.fetch


def with_release(options: ServeOptions) -> ServeOptions:
    """The same, with the release of today where HEAD is not watched: what starts anew later must not find another.

    Where the store cannot be read from here, each engine finds out for itself.
    """
    if options.watch or options.release is not None:
        return options
    try:
        return options.model_copy(update={"release": open_store(options.store).wanted()})
    except StoreError as error:
        log.warning("whatever HEAD is when an engine starts is served, now and later: %s", error)
        return options


def cache_folder(store: str, cache: str) -> Path:
    """A folder for each store, since the last good release of another store must never stand in."""
    return Path(cache).expanduser().absolute() / "stores" / hashlib.sha256(store.encode()).hexdigest()[:16]

"""What an admin may change of a running service: go back to originals, pin a release. All through the store it follows.

The store is where every node hears of it, and where it outlives a restart. Neither Ray nor torch; pyarrow only when
something is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict

from gemel_ray.spec.errors import InputError, MissingReleaseError, ServingError, StoreError

log = logging.getLogger(__name__)

# Releases that a box made for itself alone are numbered from here on, where no store ever comes.
OWN_RELEASES = 1_000_000_000


class ConflictError(ServingError):
    """As things are, this cannot be changed; the message says what has to be done first (HTTP 409)."""


class UnchangeableError(ServingError):
    """This service can never change that; the message says where it is done instead (HTTP 501)."""


class Wish(BaseModel):
    """One thing to change. `query` is for reverts, None for all; `release` for pins, None for the one served now."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["revert", "pin", "unpin"]
    query: str | None = None
    release: int | None = None


class ChangeReply(BaseModel):
    """What was changed in the store. The service follows within seconds."""

    # The release that is to be served from now on.
    release: int
    pinned: int | None
    told: str


class StoreChanges:
    """Changes the store that a service follows."""

    def __init__(self, store: str, *, follows: bool) -> None:
        """`follows` tells whether the service looks at the store's HEAD at all."""
        self._uri = store
        self._follows = follows

    def do(self, wish: Wish, served: Collection[int] = ()) -> ChangeReply:
        """Change the store; `served` are the releases that the service serves now. ConflictError and UnchangeableError
        leave it as it was."""
        self._check()
        try:
            return self._done(wish, served)
        except (InputError, MissingReleaseError) as error:
            raise ConflictError(str(error)) from error
        except StoreError as error:
            log.warning("not changed: %s", error)
            raise ConflictError(f"nothing was changed: {error}") from error

    def _check(self) -> None:
        if self._uri.lower().startswith(("http://", "https://")):
            raise UnchangeableError(
                f"store {self._uri} can only be read from here; run `gemel revert`, `gemel pin` or `gemel unpin` "
                "where the store itself is, and this service follows"
            )
        if not self._follows:
            raise ConflictError(
                "this service stays with its release and does not follow the store's HEAD; serve it without "
                "--release (in a Serve file: 'watch: true')"
            )

    def _done(self, wish: Wish, served: Collection[int]) -> ChangeReply:
        from gemel_ray.weights.maintenance import pin, revert_queries, unpin
        from gemel_ray.weights.store import open_store

        store = open_store(self._uri)
        if wish.kind == "pin":
            release = pin(store, _to_pin(wish.release, served)).release
            return ChangeReply(release=release, pinned=release, told=f"release {release} is pinned")
        if wish.kind == "unpin":
            release = unpin(store).release
            return ChangeReply(release=release, pinned=None, told=f"unpinned; HEAD is release {release}")
        names = list(store.manifest().queries) if wish.query is None else [wish.query]
        release = revert_queries(store, names).release
        what = "every query runs" if wish.query is None else f"{wish.query} runs"
        return ChangeReply(release=release, pinned=None, told=f"{what} its original again in release {release}")


def _to_pin(asked: int | None, served: Collection[int]) -> int:
    """The release asked for, or else the one that is served. ConflictError where there is no such one in the store."""
    releases = sorted(set(served)) if asked is None else [asked]
    if len(releases) != 1:
        told = f"releases {releases} are served" if releases else "nothing is served yet"
        raise ConflictError(f"nothing was pinned: {told}; say which one is to stay, as in POST /v1/pin?release=3")
    if releases[0] > OWN_RELEASES:
        raise ConflictError(
            f"nothing was pinned: release {releases[0]} is this box's own, in which it reverted a query by itself; pin "
            "a release of the store by its number, as in POST /v1/pin?release=3"
        )
    return releases[0]


async def change_nothing(wish: Wish) -> ChangeReply:
    """For a service that follows no store. Raises UnchangeableError."""
    raise UnchangeableError(f"nothing to {wish.kind} here: this service serves one release and follows no store")

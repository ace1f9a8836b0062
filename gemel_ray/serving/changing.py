"""The endpoints for admins, below /v1: run originals again, pin a release, let it go.

They answer holders of an admin's token and nobody else, not even callers of this machine: a page that somebody reads on
it could send such requests too, but knows no token.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from gemel_ray.serving.backend import Backend
from gemel_ray.serving.changes import ChangeReply, Wish
from gemel_ray.serving.protocol import card_of
from gemel_ray.serving.tokens import Guard

ReleaseNumber = Annotated[int | None, Query(gt=0)]


class Changing:
    """Hands an admin's wishes on to whoever follows the store."""

    def __init__(self, backend: Backend, guard: Guard) -> None:
        self._backend = backend
        self._guard = guard

    def router(self) -> APIRouter:
        """Everything that changes the service."""
        routes = APIRouter(prefix="/v1", dependencies=[Depends(self._guard.needs_admin_token())])
        routes.add_api_route("/queries/{query}/revert", self.revert, methods=["POST"])
        routes.add_api_route("/revert", self.revert_all, methods=["POST"])
        routes.add_api_route("/pin", self.pin, methods=["POST"])
        routes.add_api_route("/pin", self.unpin, methods=["DELETE"])
        return routes

    async def revert(self, query: str) -> ChangeReply:
        """Publish a release in which a query runs its original again."""
        card_of(await self._backend.describe(), query)
        return await self._backend.change(Wish(kind="revert", query=query))

    async def revert_all(self) -> ChangeReply:
        """The same for all queries."""
        return await self._backend.change(Wish(kind="revert"))

    async def pin(self, release: ReleaseNumber = None) -> ChangeReply:
        """Let a release stay, whatever is published; the one that is served now unless a number is given."""
        return await self._backend.change(Wish(kind="pin", release=release))

    async def unpin(self) -> ChangeReply:
        """Serve the store's HEAD again."""
        return await self._backend.change(Wish(kind="unpin"))

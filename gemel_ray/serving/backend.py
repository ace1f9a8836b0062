"""Where the HTTP endpoints get their answers from: an engine in this process, or engines on Ray Serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gemel_ray.serving.changes import ChangeReply, Wish
from gemel_ray.serving.description import Description
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.status import ServiceStatus
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import ServingError

# What the engine takes at most, 8K video; told here anew, since the engine's room brings torch along.
MOST_PIXELS = 7680 * 4320


class BusyError(ServingError):
    """An engine is well, but full: the caller is to come back shortly (HTTP 429)."""


class MeasuringError(ServingError):
    """An engine measures models of a form that is new to it; what they cost is known in a moment."""


class ElsewhereError(ServingError):
    """A query was asked of a node that does not answer it any more; another one may."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for, and all of them together."""

    max_body_bytes: int = 64 * 2**20
    # Of one frame, and of all pictures of one request together.
    max_pixels: int = MOST_PIXELS
    max_frames: int = 64
    # The time an inference that is not to be dropped may take, that after which an engine counts as lost, and that in
    # which a request's body must have arrived.
    request_timeout_s: float = 10.0
    # Requests with frames that may be under way at once, and streams of results that may be open.
    max_in_flight: int = 128
    max_listeners: int = 32
    # A quiet stream of results tells that it lives; a listener that has gone is found out as late as that.
    heartbeat_s: float = 10.0
    # Whether each query's newest frame may be looked at, small.
    has_thumbnails: bool = True


class Backend(Protocol):
    """One service: some queries, answered by one or more engines."""

    async def describe(self) -> Description:
        """What is served; cheap enough to ask with every request. ServingError when no engine can be reached."""
        ...

    async def infer(
        self, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
    ) -> list[FrameAnswer]:
        """One answer for each frame. Raises FrameError for pixels that cannot be used, BusyError and ServingError."""
        ...

    async def status(self) -> ServiceStatus:
        """How every node is doing; one that cannot be reached is told as such, never raised."""
        ...

    async def change(self, wish: Wish) -> ChangeReply:
        """Change what is served, through the store. Raises ConflictError and UnchangeableError, and changes nothing."""
        ...

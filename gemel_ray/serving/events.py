"""What happens to a service, for people: short sentences with a time."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# node: lost or back. release: rolled out, refused, reverted. query: moved, nowhere to go. store: away or back.
Kind = Literal["node", "release", "query", "store"]


class ServiceEvent(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(frozen=True)

    at: str
    kind: Kind
    text: str
    node: str | None = None

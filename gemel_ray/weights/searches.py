"""Searches as a store sees them: who runs one, and what one that was written down still needs.

The search itself is read by the room that runs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from gemel_ray.spec.errors import StoreError
from gemel_ray.weights.names import state_name

if TYPE_CHECKING:
    from gemel_ray.weights.store import Store

_SHA256 = re.compile(r"[0-9a-f]{64}")
_Release = Annotated[int, Field(gt=0, strict=True)]


class _Part(BaseModel):
    release: _Release
    round: list[Any]


class _State(BaseModel):
    """Of a state only what is needed here: other versions of it write more."""

    root: _Release
    states: list[_Part]


@dataclass(frozen=True, slots=True)
class SearchNeeds:
    """The blobs that a search names, and the releases that it goes on from: none where it is finished."""

    name: str
    blobs: frozenset[str] = frozenset()
    releases: frozenset[int] = frozenset()


@contextmanager
def claimed(store: Store, search: str) -> Iterator[None]:
    """Run a search; StoreError while another process runs one of that name here (on local disks only)."""
    with store.exclusively(f"searches/.{search}.lock", wait=False) as is_ours:
        if not is_ours:
            raise StoreError(
                f"{store.locate()}: a search of the same workload is running on this store; let it end, or give "
                "another --store"
            )
        yield


def needs_of(store: Store, name: str) -> SearchNeeds:
    """What a search needs. StoreError for a state that cannot be understood, since it may need anything."""
    saved = store.read_state(name)
    if saved is None:
        return SearchNeeds(name)
    try:
        state = _State.model_validate(saved)
    except ValidationError as error:
        what = ".".join(map(str, error.errors()[0]["loc"]))
        raise StoreError(
            f"{store.locate(state_name(name))} is damaged, or of another version (see {what!r}); restore it from a "
            "copy of the store, or remove it to start that search afresh"
        ) from error
    is_unfinished = any(part.round for part in state.states)
    releases = {state.root, *(part.release for part in state.states)} if is_unfinished else set()
    return SearchNeeds(name, frozenset(_SHA256.findall(json.dumps(saved))), frozenset(releases))

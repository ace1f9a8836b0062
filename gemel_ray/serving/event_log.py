"""The newest events of a service, which survive the process that writes them down."""

from __future__ import annotations

import datetime
import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from gemel_ray.serving.events import Kind, ServiceEvent
from gemel_ray.spec.errors import StoreError
from gemel_ray.weights.files import Files

log = logging.getLogger(__name__)

MOST_EVENTS = 200


class EventLog:
    """The newest events, oldest first; kept in a file where one is given, so that a restart forgets nothing."""

    def __init__(self, path: Path | None = None, *, now: Callable[[], str] | None = None) -> None:
        self._files = None if path is None else Files.at(path.parent)
        self._name = "" if path is None else path.name
        self._now = now or _utc_now
        self._events: deque[ServiceEvent] = deque(self._read(), maxlen=MOST_EVENTS)

    @property
    def all(self) -> tuple[ServiceEvent, ...]:
        """What is kept."""
        return tuple(self._events)

    def add(self, kind: Kind, text: str, *, node: str | None = None) -> None:
        """Note that something has happened now. What stands last already is not said twice."""
        if self._events and (self._events[-1].kind, self._events[-1].text) == (kind, text):
            return
        log.info("%s: %s", kind, text)
        self._events.append(ServiceEvent(at=self._now(), kind=kind, text=text, node=node))
        self._write()

    def _read(self) -> list[ServiceEvent]:
        if self._files is None:
            return []
        try:
            data = json.loads(self._files.read(self._name) or b"[]")
            return [ServiceEvent.model_validate(event) for event in data]
        except (ValueError, TypeError, ValidationError, StoreError) as error:
            log.warning("earlier events are lost: %s", error)
            return []

    def _write(self) -> None:
        if self._files is None:
            return
        try:
            self._files.write(self._name, json.dumps([event.model_dump() for event in self._events]).encode())
        except StoreError as error:
            log.warning("events are not kept: %s", error)


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

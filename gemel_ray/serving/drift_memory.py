"""What the drift watch knows of each query's model, on disk, so that a watch that starts anew goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from gemel_ray.policy.drift import DriftSettings, DriftState
from gemel_ray.spec.errors import StoreError
from gemel_ray.spec.release import ReleasedQuery
from gemel_ray.weights.files import Files

log = logging.getLogger(__name__)

_NAME = "drift-evidence.json"


class _Kept(BaseModel):
    """Evidence about these weights, gathered by these settings; about others it says nothing."""

    weights: dict[str, str]
    settings: DriftSettings
    state: DriftState

    def is_of(self, released: ReleasedQuery, settings: DriftSettings) -> bool:
        return self.weights == released.weights and self.settings == settings


_ALL = TypeAdapter(dict[str, _Kept])


class DriftMemory:
    """One file, replaced as a whole. For one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._files = Files.at(folder)
        self._kept = self._read()

    def recall(self, released: ReleasedQuery, settings: DriftSettings) -> DriftState:
        """What was known of these very weights; nothing, of others."""
        found = self._kept.get(released.query.name)
        return found.state if found is not None and found.is_of(released, settings) else DriftState()

    def keep(self, released: ReleasedQuery, settings: DriftSettings, state: DriftState) -> None:
        """Write down what is known now. Where the disk does not take it, a restart knows what it took last."""
        self._kept[released.query.name] = _Kept(weights=released.weights, settings=settings, state=state)
        try:
            self._files.write(_NAME, _ALL.dump_json(self._kept))
        except StoreError as error:
            log.warning("the evidence of drift is not kept: %s", error)

    def forget_others(self, queries: Collection[str]) -> None:
        """Only these are served now; the file follows when something is written into it next."""
        self._kept = {name: found for name, found in self._kept.items() if name in queries}

    def _read(self) -> dict[str, _Kept]:
        try:
            return _ALL.validate_json(self._files.read(_NAME) or b"{}")
        except (StoreError, ValidationError) as error:
            log.warning("the evidence of drift from before is lost: %s", error)
            return {}

"""What models cost on this device, by their form: measured once, and true for all later releases of that form."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gemel_ray.engine.models import kind_of
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.profile import DeviceProfile, QueryProfile, Way
from gemel_ray.spec.release import Manifest


class KindCosts:
    """Profiles by kind of model. A release changes weights, which cost what they cost before."""

    def __init__(self, ways: Sequence[Way] = ()) -> None:
        """`ways` of computing are tried when something is measured."""
        self._ways = sorted(ways)
        self._queries: dict[str, QueryProfile] = {}
        self._device: DeviceProfile | None = None

    def learn(self, manifest: Manifest, profile: DeviceProfile) -> None:
        """Keep what was measured, of the queries that the profile has."""
        for name in manifest.queries.keys() & profile.queries.keys():
            self._queries[kind_of(manifest.queries[name].query.model)] = profile.queries[name]
        self._device = profile

    def dump(self) -> str:
        """What was learnt, in JSON, for `recall`."""
        kinds = {kind: found.model_dump() for kind, found in self._queries.items()}
        device = None if self._device is None else self._device.model_copy(update={"queries": {}}).model_dump()
        return json.dumps({"kinds": kinds, "device": device, "ways": self._ways})

    def recall(self, text: str, device: str) -> None:
        """Take up what was learnt before on a device of that name, when the same ways were tried.

        ValueError for what `dump` did not write.
        """
        known = json.loads(text)
        if known["device"] is None or (known["device"]["device"], known.get("ways", [])) != (device, self._ways):
            return
        self._queries |= {kind: QueryProfile.model_validate(found) for kind, found in known["kinds"].items()}
        self._device = DeviceProfile.model_validate(known["device"])

    def unknown(self, manifest: Manifest) -> tuple[str, ...]:
        """One query for each kind of model that was never measured here."""
        found: dict[str, str] = {}
        for name, released in manifest.queries.items():
            found.setdefault(kind_of(released.query.model), name)
        return tuple(name for kind, name in found.items() if kind not in self._queries)

    def profile(self, manifest: Manifest) -> DeviceProfile:
        """Of all the release's queries. ServingError for a model of a form that was never measured here."""
        if unknown := self.unknown(manifest):
            raise ServingError(
                f"query {unknown[0]!r} has a model of a form that was never measured on this device; it is measured "
                "when it is rolled out"
            )
        assert self._device is not None, "nothing unknown, so something was learnt, or the release is empty"
        kinds = {name: kind_of(released.query.model) for name, released in manifest.queries.items()}
        return self._device.model_copy(update={"queries": {name: self._queries[kind] for name, kind in kinds.items()}})

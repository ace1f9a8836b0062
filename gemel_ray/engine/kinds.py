"""What models cost on this device, by their form: measured once, and true for all later releases of that form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple

from gemel_ray.engine.load_times import Sample
from gemel_ray.engine.models import kind_of
from gemel_ray.engine.profiling import Measured, rates_of
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.plan import Contention
from gemel_ray.spec.profile import DeviceProfile, QueryProfile, Way
from gemel_ray.spec.release import Manifest


class KindCosts:
    """Profiles by kind of model. A release changes weights, which cost what they cost before."""

    def __init__(self, ways: Sequence[Way] = ()) -> None:
        """`ways` of computing are tried when something is measured."""
        self._ways = sorted(ways)
        self._queries: dict[str, QueryProfile] = {}
        # Without queries.
        self._device: DeviceProfile | None = None
        # All that the device's rates were fitted to; none where they were given.
        self._loads: list[Sample] = []
        self._contentions: list[Contention] = []

    def learn(self, manifest: Manifest, profile: DeviceProfile) -> None:
        """Keep what a profile says, of the queries that it has. Rates that were measured hold from now on."""
        self._keep(manifest, profile.queries)
        self._device = profile.model_copy(update={"queries": {}})
        self._loads, self._contentions = [], []

    def add(self, manifest: Manifest, found: Measured) -> None:
        """Keep what was measured here. The device's rates are those of all measurements together: a small model by
        itself says little of how large ones load, and of how loads slow them down."""
        self._keep(manifest, found.queries)
        if self._device is None or self._device.estimated or self._loads:
            self._loads += found.loads
            self._contentions += found.contentions
            self._device = rates_of(found.device, self._loads, self._contentions)

    def dump(self) -> str:
        """What was learnt, in JSON, for `recall`."""
        return json.dumps(
            {
                "kinds": {kind: found.model_dump() for kind, found in self._queries.items()},
                "device": None if self._device is None else self._device.model_dump(),
                "loads": self._loads,
                "contentions": [astuple(each) for each in self._contentions],
                "ways": self._ways,
            }
        )

    def recall(self, text: str, device: str) -> None:
        """Take up what was learnt before on a device of that name, when the same ways were tried.

        ValueError for what `dump` did not write.
        """
        known = json.loads(text)
        if known["device"] is None or (known["device"]["device"], known.get("ways", [])) != (device, self._ways):
            return
        loads = [(int(count_bytes), float(took_ms)) for count_bytes, took_ms in known["loads"]]
        contentions = [Contention(*each) for each in known["contentions"]]
        self._queries |= {kind: QueryProfile.model_validate(found) for kind, found in known["kinds"].items()}
        self._device = DeviceProfile.model_validate(known["device"])
        self._loads, self._contentions = loads, contentions

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

    def _keep(self, manifest: Manifest, queries: Mapping[str, QueryProfile]) -> None:
        for name in manifest.queries.keys() & queries.keys():
            self._queries[kind_of(manifest.queries[name].query.model)] = queries[name]

"""Several accuracy targets for one workload: a release each, so that an operator can choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gemel_ray.merging.gates import SmallGateError
from gemel_ray.merging.options import SearchOptions
from gemel_ray.merging.searching import search, search_name
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Workload
from gemel_ray.weights.store import open_store

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a search at one target came to; the worst query's agreement on the gate, 1 where nothing is shared."""

    target: float
    release: int
    bytes_before: int
    bytes_after: int
    worst_agreement: float
    worst_lower_bound: float


def parse_targets(text: str) -> tuple[float, ...]:
    """'0.90,0.95' as numbers, ascending. InputError for what is no fraction."""
    try:
        targets = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError as error:
        raise InputError(f"--operating-points {text!r}: write fractions, such as 0.90,0.95,0.98") from error
    if not all(0 < target <= 1 for target in targets):
        raise InputError(f"--operating-points {text!r}: targets lie above 0 and at most at 1, such as 0.95")
    return targets


def search_operating_points(
    workload: Workload, store_uri: str, options: SearchOptions, targets: Sequence[float], report: Report
) -> list[OperatingPoint]:
    """Search the workload once for every target. HEAD is left at the strictest target's release.

    Each has its even part of the minutes that are left; trials and epochs are each target's own. Targets that the gates
    have too few frames for are left out; SmallGateError where that leaves none.
    """
    points: list[OperatingPoint] = []
    until_s = time.monotonic() + 60 * options.minutes
    for place, target in enumerate(targets):
        report(f"searching for {100 * target:g} % of the originals' accuracy")
        aimed = workload.aimed_at(target)
        begun = open_store(store_uri, create=True).read_state(search_name(aimed)) is not None
        try:
            minutes = max(until_s - time.monotonic(), 0) / 60 / (len(targets) - place)
            own = replace(options, resume=options.resume and begun, minutes=minutes)
            found = search(aimed, store_uri, own, report)
        except SmallGateError as error:
            if not points:
                raise
            report(f"{100 * target:g} % and above are left out: {error}")
            break
        points.append(_point(target, found))
    open_store(store_uri).set_head(points[-1].release)
    return points


def _point(target: float, manifest: Manifest) -> OperatingPoint:
    found = [released.accuracy for released in manifest.queries.values() if released.accuracy]
    return OperatingPoint(
        target=target,
        release=manifest.release,
        bytes_before=manifest.bytes_before,
        bytes_after=manifest.bytes_after,
        worst_agreement=min((accuracy.held[0] for accuracy in found), default=1.0),
        worst_lower_bound=min((accuracy.held[1] for accuracy in found), default=1.0),
    )

"""A release's cameras on a simulated box: every policy and budget that is asked for."""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gemel_ray.edge.playing import Asked, Played, play_asked
from gemel_ray.policy.baselines import POLICIES, find_policy
from gemel_ray.policy.estimates import estimate_profile, find_rates
from gemel_ray.policy.sharing import Models, models_of
from gemel_ray.spec.errors import InputError, nearest
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.strict import explain
from gemel_ray.spec.units import parse_bytes
from gemel_ray.spec.workload import Workload
from gemel_ray.vision.costs import model_cost
from gemel_ray.vision.recording import Recording, accuracies, read_recording, record_answers, write_recording
from gemel_ray.weights.outputs import check_output, write_output
from gemel_ray.weights.store import Store, open_store

# Memory levels between the largest model alone and all of them (GEMEL's evaluation: 0, 50 % and 75 % of the way).
_LEVELS = (0.0, 0.25, 0.5, 0.75)
# A day: every frame is kept until the end, and cameras repeat themselves long before.
_MOST_SECONDS = 86_400
# Of each feed, where nobody says how many.
_FRAMES = 300
# Fewer are simulated sooner than another process starts.
_LEAST_FRAMES = 100_000


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """What to simulate. A profile that was measured, or the name of a device to estimate one for."""

    release: int | None = None
    profile: Path | None = None
    rates: str | None = None
    memory: str | None = None
    policy: str | None = None
    seconds: float = 30
    trace: Path | None = None
    # With a workload: recorded answers, read from this file or written there.
    answers: Path | None = None
    # Of each feed; None takes those of a recording, or as many as are usual.
    most_frames: int | None = None
    allow_factories: bool = False
    # More than one only where the main module may be imported again without running, as commands may.
    processes: int = 1


def simulate_store(
    uri: str,
    options: SimulationOptions,
    workload: Workload | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """One row for each policy and budget. A budget that holds not even one model gives a row with the reason.

    With the workload, whose feeds have the frames, rows tell end-to-end accuracy as well. `report` is called with how
    many rows are done, of how many. Raises InputError for what is wrong with the options, StoreError for a store
    without that release.
    """
    _check(options, workload)
    check_output(options.trace)
    if options.answers is not None and not options.answers.exists():
        check_output(options.answers)
    store = open_store(uri)
    manifest = store.manifest(options.release)
    profile = read_profile(
        manifest, options.profile, options.rates, allow_factories=options.allow_factories
    )  # fmt: skip
    policies = [name.strip() for name in options.policy.split(",")] if options.policy is not None else list(POLICIES)
    for policy in policies:
        find_policy(policy)
    budgets = _budgets(manifest, profile, options.memory)
    recording = None if workload is None else _recording(workload, store, manifest, options)
    models = models_of(manifest)
    asked = [
        Asked(policy, budget_bytes, options.seconds * 1000, wants_standing=recording is not None)
        for budget_bytes in budgets
        for policy in policies
    ]
    if options.trace is not None:
        asked[-1] = replace(asked[-1], wants_trace=True)
    played = _all_played(models, profile, asked, options.processes, report)
    if options.trace is not None and played[-1].trace is not None:
        write_output(options.trace, json.dumps(played[-1].trace).encode())
    return [_row(profile, each, found, recording) for each, found in zip(asked, played, strict=True)]


def _check(options: SimulationOptions, workload: Workload | None) -> None:
    if not 1 <= options.seconds <= _MOST_SECONDS:
        raise InputError(f"--seconds {options.seconds:g}: must be from 1 to {_MOST_SECONDS} (a day)")
    for name, value in (("answers", options.answers), ("frames", options.most_frames)):
        if workload is None and value is not None:
            raise InputError(f"--{name} {value}: is for end-to-end accuracy; also give the workload")


def _all_played(
    models: Models,
    profile: DeviceProfile,
    asked: Sequence[Asked],
    processes: int,
    report: Callable[[int, int], None],
) -> list[Played]:
    frames = sum(model.fps * each.duration_ms / 1000 for model in models.values() for each in asked)
    work = partial(play_asked, models, profile)
    if processes == 1 or frames < _LEAST_FRAMES:
        return list(_told(map(work, asked), len(asked), report))
    # Spawned: what was imported here has started threads.
    with ProcessPoolExecutor(min(processes, len(asked)), multiprocessing.get_context("spawn")) as pool:
        return list(_told(pool.map(work, asked), len(asked), report))


def _told(played: Iterable[Played], total: int, report: Callable[[int, int], None]) -> Iterator[Played]:
    for done, each in enumerate(played, start=1):
        report(done, total)
        yield each


def _recording(workload: Workload, store: Store, manifest: Manifest, options: SimulationOptions) -> Recording:
    if options.answers is not None and options.answers.exists():
        return read_recording(options.answers, store, manifest, most_frames=options.most_frames)
    recording = record_answers(
        workload, store, manifest, most_frames=options.most_frames or _FRAMES, allow_factories=options.allow_factories
    )
    if options.answers is not None:
        write_recording(recording, options.answers)
    return recording


def _row(profile: DeviceProfile, asked: Asked, played: Played, recording: Recording | None) -> dict[str, Any]:
    head = {
        "policy": asked.policy,
        "budget_bytes": asked.budget_bytes,
        "device": profile.device,
        "estimated": profile.estimated,
    }
    found = played.found
    if found is None:
        return head | {"problem": played.problem}
    if recording is not None and played.standing is not None:
        accuracy = accuracies(recording, played.standing, merged=find_policy(asked.policy).serves_merged)
        head |= {"accuracy": accuracy, "mean_accuracy": statistics.fmean(accuracy.values())}
    return head | {
        **{key: value for key, value in asdict(found).items() if key not in ("policy", "budget_bytes")},
        "mean_goodput_fraction": found.mean_goodput_fraction,
        "goodput_at_other_phases": list(played.goodput_at_other_phases),
        "worst_goodput_fraction": found.worst_goodput_fraction,
        "worst_query": min(found.goodput_fraction, key=found.goodput_fraction.__getitem__),
    }


def read_profile(
    manifest: Manifest, profile: Path | None, rates: str | None, *, allow_factories: bool = False
) -> DeviceProfile:
    """A profile that was measured, from its file, or one that is estimated for a device of known rates.

    Raises InputError unless exactly one of them is given, for a file that is no profile or lacks a query of the
    release, for unknown rates, and for models whose costs cannot be estimated.
    """
    if (profile is None) == (rates is None):
        raise InputError("give either --profile (from `gemel profile STORE --out FILE`) or --rates (a device's name)")
    if rates is not None:
        found_rates = find_rates(rates)
        costs = {
            name: model_cost(released.query.model, allow_factories=allow_factories)
            for name, released in manifest.queries.items()
        }
        return estimate_profile(found_rates, costs)
    assert profile is not None, "checked above"
    try:
        found = DeviceProfile.model_validate_json(profile.read_bytes())
    except OSError as error:
        raise InputError(f"--profile {profile}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(
            f"--profile {profile}: is no profile; make one with `gemel profile STORE --out FILE`:\n"
            f"{explain(error, DeviceProfile)}"
        ) from error
    for name in manifest.queries:
        if name not in found.queries:
            raise InputError(
                f"--profile {profile}: the profile of {found.device} lacks query {name!r} "
                f"({nearest(name, found.queries)}); profile this release on this device"
            )
    return found


def _budgets(manifest: Manifest, profile: DeviceProfile, memory: str | None) -> list[int]:
    if memory is not None:
        try:
            return [parse_bytes(size) for size in memory.split(",")]
        except ValueError as error:
            raise InputError(f"--memory: {error}") from error
    alone = {
        name: sum(manifest.blobs[sha].tensor_bytes for sha in manifest.blobs_of(name)) for name in manifest.queries
    }
    largest = max(alone[name] + min(profile.queries[name].workspace_bytes.values()) for name in alone)
    return [round(largest + level * (manifest.bytes_before - max(alone.values()))) for level in _LEVELS]

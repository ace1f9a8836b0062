"""The commands as functions. They raise what the commands print: subclasses of GemelError, InputErrors for input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from gemel_ray.api.results import (
    AnalyzedWorkload,
    LoadedWorkload,
    OpenedStore,
    Release,
    RunningService,
    Simulations,
    as_release,
)
from gemel_ray.spec import workload as workload_files
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.strict import explain
from gemel_ray.spec.workload import Workload

if TYPE_CHECKING:
    from gemel_ray.policy.grouping import Rule
    from gemel_ray.spec.trials import Objective, Start

WorkloadOrFile = Workload | str | Path


def load_workload(path: str | Path) -> LoadedWorkload:
    """Read a workload file. WorkloadError names the file, the field, the value and the fix."""
    found = workload_files.load_workload(path)
    loaded = LoadedWorkload.model_construct(**dict(found))
    # Not a field, and part of what makes both the same workload to a search.
    loaded._base = found._base
    return loaded


def analyze(workload: WorkloadOrFile, *, rule: Rule = "exact", allow_factories: bool = False) -> AnalyzedWorkload:
    """What the workload's models could share at most; no weights are allocated."""
    from gemel_ray.vision import inspection

    found = inspection.analyze(_loaded(workload), rule=rule, allow_factories=allow_factories)
    return AnalyzedWorkload(**{each.name: getattr(found, each.name) for each in fields(found)})


def open_store(uri: str | Path, *, create: bool = False) -> OpenedStore:
    """Open a store at a folder or a URI; StoreError where there is none, unless it is to be created.

    InputError for what is no URI of a store.
    """
    from gemel_ray.weights import store
    from gemel_ray.weights.files import Files

    store.open_store(uri, create=create)
    return OpenedStore(Files.at(uri), str(uri))


def search(
    workload: WorkloadOrFile,
    store: str | Path,
    *,
    parallel: int = 2,
    cpus: float = 1,
    gpus: float = 0,
    trials: int = 40,
    steps: int = 150,
    minutes: float = math.inf,
    epochs: float = math.inf,
    gate_margin: float = 0.0,
    objective: Objective = "distillation",
    start: Start = "aligned",
    delta_rank: int = 8,
    views: bool = True,
    paper: bool = False,
    slices: bool = True,
    logs: str | Path | None = None,
    from_release: int | None = None,
    apart: str | Sequence[str] = (),
    seed: int = 0,
    resume: bool = False,
    allow_factories: bool = False,
    progress: Callable[[str], None] = print,
) -> Release:
    """Search what the workload's models can share, as `gemel search` does; the best release, in the store already.

    `parallel` trials run at once, each with `cpus` and `gpus`, on the Ray that runs or on one started meanwhile.
    """
    from gemel_ray.merging.options import SearchOptions
    from gemel_ray.merging.searching import search as run_search
    from gemel_ray.policy.search_state import SearchSettings

    try:
        settings = SearchSettings(
            max_trials=trials, max_steps=steps, gate_margin=gate_margin, objective=objective, start=start,
            delta_rank=delta_rank, views=views,
        )  # fmt: skip
    except ValidationError as error:
        raise InputError(f"this is no search:\n{explain(error, SearchSettings)}") from error
    options = SearchOptions(
        parallel=parallel, cpus=cpus, gpus=gpus, seed=seed, minutes=minutes, epochs=epochs, paper=paper, slices=slices,
        settings=settings, allow_factories=allow_factories, resume=resume, logs=None if logs is None else Path(logs),
        from_release=from_release, apart=tuple(apart.split(",") if isinstance(apart, str) else apart),
    )  # fmt: skip
    return as_release(run_search(_loaded(workload), str(store), options, progress))


def simulate(
    store: str | Path,
    *,
    profile: str | Path | None = None,
    rates: str | None = None,
    memory: str | int | Sequence[str | int] | None = None,
    policy: str | Sequence[str] | None = None,
    seconds: float = 30,
    release: int | None = None,
    workload: WorkloadOrFile | None = None,
    answers: str | Path | None = None,
    frames: int | None = None,
    trace: str | Path | None = None,
    allow_factories: bool = False,
) -> Simulations:
    """A release's cameras on a simulated box under every policy and budget, as `gemel simulate` runs them.

    Give either a `profile` (the file that `gemel profile --out` wrote) or a device's `rates`, such as "t4".
    `memory` and `policy` are one or several; sizes are such as "32MiB", or bytes.
    """
    from gemel_ray.engine.simulating import SimulationOptions, simulate_store

    options = SimulationOptions(
        release=release, profile=None if profile is None else Path(profile), rates=rates, memory=_listed(memory),
        policy=_listed(policy), seconds=seconds, answers=None if answers is None else Path(answers),
        trace=None if trace is None else Path(trace), most_frames=frames, allow_factories=allow_factories,
    )  # fmt: skip
    return Simulations(simulate_store(str(store), options, None if workload is None else _loaded(workload)))


@contextmanager
def serve(
    workload: WorkloadOrFile,
    store: str | Path,
    *,
    release: int | None = None,
    node: str | None = None,
    memory: str | int | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_factories: bool = False,
) -> Iterator[RunningService]:
    """Serve a release with Ray Serve until the block ends, to callers of this machine; `gemel serve` takes tokens too.

    with gemel_ray.serve("workload.yaml", "store", memory="512MiB") as service: print(service.url)
    """
    from gemel_ray.serving.local import serve_release
    from gemel_ray.serving.machine import node_options

    options = node_options(_loaded(workload), node, memory)
    with serve_release(
        str(store), nodes=[options], release=release, watch=release is None, host=host, port=port,
        allow_factories=allow_factories,
    ) as service:  # fmt: skip
        yield RunningService(service.url)


def _listed(given: str | int | Sequence[str | int] | None) -> str | None:
    """As the command line takes it: 'a,b', and a number as bytes."""
    if given is None or isinstance(given, str):
        return given
    several = given if isinstance(given, Sequence) else [given]
    return ",".join(f"{each}B" if isinstance(each, int) else str(each) for each in several)


def _loaded(workload: WorkloadOrFile) -> Workload:
    return workload if isinstance(workload, Workload) else workload_files.load_workload(workload)

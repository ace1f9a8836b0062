"""Commands for the edge box: measure it, simulate it, serve on it without Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gemel_ray.cli import render_edge
from gemel_ray.cli.common import (
    AllowFactories,
    AsJson,
    ReleaseNumber,
    StoreUri,
    Thumbnails,
    TlsCert,
    TlsKey,
    Ways,
    WorkloadFile,
    show_result,
    tell,
)
from gemel_ray.cli.progress import working
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.units import format_bytes


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (profile, simulate, edge):
        app.command()(command)


def profile(
    store: StoreUri,
    release: ReleaseNumber = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    reload_from: Annotated[
        str, typer.Option(help="Where evicted weights come back from: memory, or disk where the box has none to spare.")
    ] = "memory",
    repeats: Annotated[int, typer.Option(min=1, help="Medians of so many.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of an inference on a CPU; as many as there are cores without it.")
    ] = None,
    way: Ways = None,
    out: Annotated[Path | None, typer.Option(help="Also write the profile here, for `gemel simulate`.")] = None,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Measure on this device what a release costs: load ms, run ms and workspace bytes by batch size.

    Example: gemel profile gemel-demo/store --out profile.json
    """
    from gemel_ray.engine.profiling import profile_store
    from gemel_ray.spec.profile import ways_named
    from gemel_ray.weights.outputs import check_output, write_output

    if reload_from not in ("memory", "disk"):
        raise InputError(f"--reload-from {reload_from!r} is not known; choose memory or disk")
    ways = ways_named(way or ())
    check_output(out)
    with working("measuring every model on this device"):
        found = profile_store(
            store, release, device=device, repeats=repeats, reload_from=reload_from,  # type: ignore[arg-type]
            allow_factories=allow_factories, ways=ways, threads=threads,
        )  # fmt: skip
    if out is not None:
        write_output(out, found.model_dump_json(indent=1).encode())
    show_result(found.model_dump(mode="json"), as_json, render_edge.profile_table)


def simulate(
    target: Annotated[
        str, typer.Argument(metavar="WORKLOAD|STORE", help="A workload file, with --store; or only a store.")
    ],
    store: Annotated[str | None, typer.Option(help="The store with the workload's releases.")] = None,
    release: ReleaseNumber = None,
    profile: Annotated[Path | None, typer.Option(help="What `gemel profile --out` wrote.")] = None,
    rates: Annotated[str | None, typer.Option(help="Estimate instead, from published rates: t4, l4, ...")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Budgets, such as 32MiB,64MiB; by default from one model to all of them.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policies, such as ours_released,time_space; all without it.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of simulated traffic, a day at most.")] = 30,
    trace: Annotated[Path | None, typer.Option(help="Write the last run here, for chrome://tracing.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Recorded answers: read from here, or recorded and written here.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of each feed, at most so many unseen ones are recorded; 300 without it.")
    ] = None,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Run a release's cameras on a simulated box under every policy and budget: goodput, stale frames, bytes swapped.

    With the workload also end-to-end accuracy: originals and merged models answer each frame once, and what a user
    would have seen, stale answers included, is held against the originals' own answers.

    Example: gemel simulate gemel-demo/workload.yaml --store gemel-demo/store --profile profile.json
    """
    from gemel_ray.engine.simulating import SimulationOptions, simulate_store
    from gemel_ray.spec.workload import load_workload

    if store is None and target.endswith((".yaml", ".yml")):
        raise InputError(f"{target} looks like a workload: also give --store, where its releases are")
    options = SimulationOptions(
        release=release, profile=profile, rates=rates, memory=memory, policy=policy, seconds=seconds, trace=trace,
        answers=answers, most_frames=frames, allow_factories=allow_factories, processes=os.cpu_count() or 1,
    )  # fmt: skip
    workload = None if store is None else load_workload(Path(target))
    with working("simulating every policy and budget") as advance:
        rows = simulate_store(store or target, options, workload, advance)
    if trace is not None:
        _tell_trace(trace, rows[-1])
    show_result(rows, as_json, render_edge.simulations_table)


def _tell_trace(path: Path, last: Mapping[str, Any]) -> None:
    run = f"the last run, {last['policy']} in {format_bytes(last['budget_bytes'])}"
    does_fit = "problem" not in last
    tell(f"{path}: {run}" if does_fit else f"--trace {path}: nothing was written, {run}, does not fit; name others")


def edge(
    workload: WorkloadFile,
    store: Annotated[str, typer.Option(help="The store to follow: a folder, https://..., s3://... or another URI.")],
    release: Annotated[int | None, typer.Option(min=1, help="Stay with this release instead of HEAD.")] = None,
    node: Annotated[str | None, typer.Option(help="Which of the workload's nodes this machine is.")] = None,
    memory: Annotated[str | None, typer.Option(help="Another budget than the node's, such as 512MiB.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others' need tokens, see --options.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    options: Annotated[Path | None, typer.Option(help="YAML: tokens, limits, queries, how often to poll.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for blobs and the last good release.")] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    way: Ways = None,
    thumbnails: Thumbnails = True,
) -> None:
    """Serve on this machine alone, without Ray: follow the store's HEAD, and go on from local disk when it is away.

    Example: gemel edge workload.yaml --store https://models.example.org/store --cache /var/lib/gemel
    """
    from gemel_ray.serving.asked import check_asked
    from gemel_ray.serving.edge_server import serve_edge
    from gemel_ray.serving.machine import node_options
    from gemel_ray.serving.options import load_edge_options
    from gemel_ray.serving.tls import read_certificate
    from gemel_ray.spec.workload import load_workload

    loaded = load_workload(workload)
    check_asked(loaded, store, release, tell)
    serve_edge(
        store, node_options(loaded, node, memory, way or ()), load_edge_options(options).with_thumbnails(thumbnails),
        release=release, workload=loaded, cache=cache, host=host, port=port,
        tls=read_certificate(tls_cert, tls_key), report=tell,
    )  # fmt: skip
    tell("stopped")

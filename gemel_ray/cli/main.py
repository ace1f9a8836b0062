"""The `gemel` command: parse, call one library function, print the result."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gemel_ray.cli import render
from gemel_ray.spec.errors import GemelError, InputError

app = typer.Typer(
    name="gemel",
    help="Merge vision models until they fit the edge box.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
WorkloadFile = Annotated[Path, typer.Argument(help="A workload file (YAML).", metavar="WORKLOAD")]
StoreUri = Annotated[
    str, typer.Argument(help="A store: a folder, or a URI such as s3://bucket/store.", metavar="STORE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
AllowFactories = Annotated[bool, typer.Option(help="Let the workload run its own model factories (code).")]


def main() -> None:
    """Run the command. Exit code 1: it failed; 2: the input is wrong."""
    # Threads that wait for work by spinning take the processor from the trials and cameras beside them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except InputError as error:
        _fail(error, 2)
    except GemelError as error:
        _fail(error, 1)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: GemelError, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


def _show(document: Any, as_json: bool, table: Callable[[Any], None]) -> None:  # noqa: ANN401 - any JSON
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        table(document)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("gemel-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Four small cameras, under two minutes.")] = False,
    video: Annotated[
        Path | None, typer.Option(help="A folder of real cameras (cameras/NAME/tiles.jsonl) instead of drawn ones.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 2,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Walk through everything: originals, a parallel merge search, a release, serving it in too little memory.

    Example: gemel demo
    """
    from gemel_ray.demo.story import DemoOptions, run_demo

    options = DemoOptions(folder=out, quick=quick, video=video, seed=seed, parallel=parallel)
    # Ray prints a line or two of its own; stdout is for the result alone.
    with redirect_stdout(sys.stderr):
        document = run_demo(options, _tell)
    _show(document, as_json, render.demo_tables)


@app.command()
def analyze(
    workload: WorkloadFile,
    rule: Annotated[str, typer.Option(help="What makes layers interchangeable: exact or shape.")] = "exact",
    top: Annotated[int, typer.Option(min=1, help="How many layer groups to print.")] = 15,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Show each model's memory, where it sits, and what sharing could save at most. Allocates no weights.

    Example: gemel analyze serve_configs/workloads/streets.yaml
    """
    from gemel_ray.spec.workload import load_workload
    from gemel_ray.vision.inspection import analyze as analyze_workload

    if rule not in ("exact", "shape"):
        raise InputError(f"--rule {rule!r} is not a signature rule; choose exact or shape")
    found = analyze_workload(load_workload(workload), rule=rule, allow_factories=allow_factories)  # type: ignore[arg-type]
    _show(render.analysis_document(found), as_json, lambda document: render.analysis_tables(document, top))


@app.command()
def originals(
    workload: WorkloadFile,
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("originals"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = 150,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Models trained at once; as many as there are processors without it.")
    ] = None,
    seed: int = 0,
    family: Annotated[bool, typer.Option(help="Fine-tune models of one architecture from a common ancestor.")] = True,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Train the workload's originals from its feeds' labels and save them as safetensors. Cached by content.

    Example: gemel originals serve_configs/workloads/streets.yaml --out originals
    """
    from gemel_ray.spec.workload import load_workload
    from gemel_ray.training.fleet import train_fleet

    found = train_fleet(
        load_workload(workload), out, steps=steps, seed=seed, family=family, parallel=parallel or os.cpu_count() or 1,
        allow_factories=allow_factories,
        report=_tell,
    )  # fmt: skip
    _show([original.document() for original in found], as_json, render.originals_table)


@app.command()
def search(
    workload: WorkloadFile,
    store: Annotated[str, typer.Option(help="Where releases go: a folder or a URI. Made if absent.")],
    parallel: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 2,
    cpus: Annotated[float, typer.Option(help="CPUs of each trial.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs (or a fraction) of each trial.")] = 0,
    trials: Annotated[int, typer.Option(min=1, help="Trials that retrain, at most.")] = 40,
    steps: Annotated[int, typer.Option(min=1, help="Retraining steps of each trial at most.")] = 150,
    minutes: Annotated[
        float, typer.Option(min=0, help="Start no trial after so many minutes; --resume goes on.")
    ] = math.inf,
    gate_margin: Annotated[
        float, typer.Option(min=0, max=1, help="How far below the target the gate's lower confidence bound may lie.")
    ] = 0.0,
    objective: Annotated[
        str, typer.Option(help="What retraining follows: distillation (the originals' answers) or labels.")
    ] = "distillation",
    operating_points: Annotated[
        str | None, typer.Option(help="Targets instead of the workload's own, a release for each: 0.90,0.95,0.98.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Share across models only, by GEMEL's own rule; not within models.")
    ] = False,
    seed: int = 0,
    resume: Annotated[bool, typer.Option(help="Take up an interrupted search of this workload.")] = False,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Search merge configurations in parallel on Ray Tune; every improvement is published at once.

    Example: gemel search workload.yaml --store ./store
    """
    from gemel_ray.merging.operating import parse_targets, search_operating_points
    from gemel_ray.merging.searching import SearchOptions
    from gemel_ray.merging.searching import search as run_search
    from gemel_ray.policy.search import SearchSettings
    from gemel_ray.spec.workload import load_workload

    if objective not in ("distillation", "labels"):
        raise InputError(f"--objective {objective!r} is not known; choose distillation or labels")
    options = SearchOptions(
        parallel=parallel, cpus=cpus, gpus=gpus, seed=seed, paper=paper, minutes=minutes,
        settings=SearchSettings(max_trials=trials, max_steps=steps, gate_margin=gate_margin, objective=objective),  # type: ignore[arg-type]
        allow_factories=allow_factories, resume=resume,
    )  # fmt: skip
    loaded = load_workload(workload)
    # Tune prints a header of its own; stdout is for the result alone.
    with redirect_stdout(sys.stderr):
        if operating_points is not None:
            targets = parse_targets(operating_points)
            points = search_operating_points(loaded, store, options, targets, _tell)
        else:
            manifest = run_search(loaded, store, options, _tell)
    if operating_points is not None:
        _show([asdict(point) for point in points], as_json, render.operating_points_table)
    else:
        _show(manifest.model_dump(mode="json"), as_json, render.manifest_tables)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@app.command()
def serve(
    workload: WorkloadFile,
    store: Annotated[str, typer.Option(help="The store to serve from: a folder or a URI.")],
    release: Annotated[int | None, typer.Option(min=1, help="A release's number; HEAD's without it.")] = None,
    node: Annotated[str | None, typer.Option(help="Which of the workload's nodes this machine is.")] = None,
    memory: Annotated[str | None, typer.Option(help="Another budget than the node's, such as 512MiB.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Nobody is asked who they are: keep it local.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    allow_factories: AllowFactories = False,
) -> None:
    """Serve a release on this machine with Ray Serve, until Ctrl-C.

    Example: gemel serve gemel-demo/workload.yaml --store gemel-demo/store
    """
    from gemel_ray.serving.local import node_options, serve_release, wait_for_interrupt
    from gemel_ray.spec.workload import load_workload

    options = node_options(load_workload(workload), node, memory)
    with (
        redirect_stdout(sys.stderr),
        serve_release(
            store, nodes=[options], release=release, allow_factories=allow_factories, host=host, port=port
        ) as service,
    ):
        print(f"serving at {service.url} (status page, /v2 and /v1), Ctrl-C ends it", file=sys.stderr, flush=True)
        wait_for_interrupt()
    print("stopped", file=sys.stderr)


@app.command()
def profile(
    store: StoreUri,
    release: Annotated[int | None, typer.Option(min=1, help="A release's number; HEAD's without it.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    reload_from: Annotated[
        str, typer.Option(help="Where evicted weights come back from: memory, or disk where the box has none to spare.")
    ] = "memory",
    repeats: Annotated[int, typer.Option(min=1, help="Medians of so many.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Also write the profile here, for `gemel simulate`.")] = None,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Measure on this device what a release costs: load ms, run ms and workspace bytes by batch size.

    Example: gemel profile gemel-demo/store --out profile.json
    """
    from gemel_ray.engine.profiling import profile_store

    if reload_from not in ("memory", "disk"):
        raise InputError(f"--reload-from {reload_from!r} is not known; choose memory or disk")
    found = profile_store(
        store, release, device=device, repeats=repeats, reload_from=reload_from,  # type: ignore[arg-type]
        allow_factories=allow_factories,
    )  # fmt: skip
    if out is not None:
        out.write_text(found.model_dump_json(indent=1), encoding="utf-8")
    _show(found.model_dump(mode="json"), as_json, render.profile_table)


@app.command()
def simulate(
    store: StoreUri,
    release: Annotated[int | None, typer.Option(min=1, help="A release's number; HEAD's without it.")] = None,
    profile: Annotated[Path | None, typer.Option(help="What `gemel profile --out` wrote.")] = None,
    rates: Annotated[str | None, typer.Option(help="Estimate instead, from published rates: t4, l4, ...")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Budgets, such as 32MiB,64MiB; by default from one model to all of them.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Policies, such as ours,time_space; all without it.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of simulated traffic.")] = 30,
    trace: Annotated[Path | None, typer.Option(help="Write the last run here, for chrome://tracing.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a release's cameras on a simulated box under every policy and budget: goodput, stale frames, bytes swapped.

    Example: gemel simulate gemel-demo/store --profile profile.json --memory 24MiB,32MiB
    """
    from gemel_ray.engine.simulating import SimulationOptions, simulate_store

    options = SimulationOptions(
        release=release, profile=profile, rates=rates, memory=memory, policy=policy, seconds=seconds, trace=trace
    )
    _show(simulate_store(store, options), as_json, render.simulations_table)


@app.command()
def releases(store: StoreUri, as_json: AsJson = False) -> None:
    """List a store's releases."""
    from gemel_ray.weights.store import open_store

    opened = open_store(store)
    rows = [render.release_row(opened.manifest(number), head=opened.head()) for number in opened.releases()]
    _show(rows, as_json, render.releases_table)


@app.command()
def show(
    store: StoreUri,
    release: Annotated[int | None, typer.Option(help="A release's number; HEAD's without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one release: accuracies, bytes before and after, how it was made."""
    from gemel_ray.weights.store import open_store

    _show(open_store(store).manifest(release).model_dump(mode="json"), as_json, render.manifest_tables)


@app.command()
def verify(store: StoreUri, as_json: AsJson = False) -> None:
    """Check every blob and manifest of a store. Exit code 1 when something is wrong."""
    from gemel_ray.weights.store import open_store

    problems = [{"path": problem.path, "what": problem.what} for problem in open_store(store).verify()]
    _show(problems, as_json, render.problems_table)
    if problems:
        raise typer.Exit(1)

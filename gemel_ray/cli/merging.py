"""Commands that merge: what could be shared, training originals, searching."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemel_ray.cli import render_merging, render_stores
from gemel_ray.cli.common import AllowFactories, AsJson, WorkloadFile, show_result, tell
from gemel_ray.cli.progress import working
from gemel_ray.spec.errors import InputError

if TYPE_CHECKING:
    # Ray and torch are loaded by the commands that need them.
    from gemel_ray.merging.options import SearchOptions
    from gemel_ray.spec.workload import Workload
    from gemel_ray.training.fleet import Original


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (analyze, originals, search):
        app.command()(command)


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

    asked = load_workload(workload)
    with working("reading the models' layers"):
        found = analyze_workload(asked, rule=rule, allow_factories=allow_factories)  # type: ignore[arg-type]
    show_result(
        render_merging.analysis_document(found), as_json, lambda document: render_merging.analysis_tables(document, top)
    )


def originals(
    workload: WorkloadFile,
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("originals"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = 150,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Models trained at once; as many as there are processors without it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    family: Annotated[bool, typer.Option(help="Fine-tune models of one architecture from a common ancestor.")] = True,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Train the workload's originals from its feeds' labels and save them as safetensors.

    Those that lie there stay while their frames, labels, model and options are the same.

    Example: gemel originals serve_configs/workloads/streets.yaml --out originals
    """
    from gemel_ray.spec.workload import load_workload
    from gemel_ray.training.fleet import train_fleet

    asked = load_workload(workload)
    with working("training originals", speaks=True):
        found = train_fleet(
            asked, out, steps=steps, seed=seed, family=family, parallel=parallel or os.cpu_count() or 1,
            allow_factories=allow_factories, report=tell,
        )  # fmt: skip
    for line in _elsewhere(asked, workload, found):
        tell(line)
    show_result([original.document() for original in found], as_json, render_merging.originals_table)


def _elsewhere(asked: Workload, file: Path, found: Sequence[Original]) -> Iterator[str]:
    """What `gemel search` would not find: originals that the workload does not name."""
    for original in found:
        named, written = asked.query(original.query).model.weights, Path(original.weights).resolve()
        if named is None or Path(named).resolve() != written:
            wanted = os.path.relpath(written, file.resolve().parent)
            now = "names no 'weights'" if named is None else f"has other 'weights', {named}"
            yield f"query {original.query!r} {now}: to merge what was trained, give its model `weights: {wanted}`"


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
    epochs: Annotated[
        float, typer.Option(min=0, help="Passes over the longest feed's training frames, all trials together, at most.")
    ] = math.inf,
    gate_margin: Annotated[
        float, typer.Option(min=0, max=1, help="How far below the target the gate's lower confidence bound may lie.")
    ] = 0.0,
    objective: Annotated[
        str, typer.Option(help="What retraining follows: distillation (the originals' answers), labels or both.")
    ] = "distillation",
    start: Annotated[
        str, typer.Option(help="Where shared weights start: aligned (channels in line, then the mean), mean or member.")
    ] = "aligned",
    delta_rank: Annotated[
        int, typer.Option(min=0, help="Rank of the private corrections that a resisting layer is tried with; 0: none.")
    ] = 8,
    views: Annotated[
        bool, typer.Option(help="Learn from flipped and shifted frames too, once frames turn out to be too few.")
    ] = True,
    operating_points: Annotated[
        str | None,
        typer.Option(help="Targets instead of the workload's own, a release for each, --minutes divided: 0.90,0.95."),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Share across models only, by GEMEL's own rule; not within models.")
    ] = False,
    slices: Annotated[bool, typer.Option(help="Let smaller layers be slices of larger ones, too.")] = True,
    logs: Annotated[
        Path | None, typer.Option(help="Keep every trial's TensorBoard, JSON-lines and CSV logs in this folder.")
    ] = None,
    from_release: Annotated[
        int | None, typer.Option(min=1, help="Go on from what this release of the store has merged already.")
    ] = None,
    apart: Annotated[
        str | None, typer.Option(help="With --from-release: queries that share nothing at first, such as a,b.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[bool, typer.Option(help="Take up an interrupted search of this workload.")] = False,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Search merge configurations in parallel on Ray Tune; every improvement is published at once.

    Example: gemel search workload.yaml --store ./store
    """
    from gemel_ray.merging.options import SearchOptions
    from gemel_ray.policy.search_state import SearchSettings
    from gemel_ray.spec.workload import load_workload

    if objective not in ("distillation", "labels", "both"):
        raise InputError(f"--objective {objective!r} is not known; choose distillation, labels or both")
    if start not in ("aligned", "mean", "member"):
        raise InputError(f"--start {start!r} is not known; choose aligned, mean or member")
    settings = SearchSettings(
        views=views, max_trials=trials, max_steps=steps, gate_margin=gate_margin, objective=objective,  # type: ignore[arg-type]
        start=start, delta_rank=delta_rank,  # type: ignore[arg-type]
    )  # fmt: skip
    options = SearchOptions(
        parallel=parallel, cpus=cpus, gpus=gpus, seed=seed, paper=paper, slices=slices, minutes=minutes, epochs=epochs,
        settings=settings, allow_factories=allow_factories, resume=resume, logs=logs, from_release=from_release,
        apart=tuple(apart.split(",")) if apart is not None else (),
    )  # fmt: skip
    _search_and_show(load_workload(workload), store, options, operating_points, as_json)


def _search_and_show(
    workload: Workload, store: str, options: SearchOptions, operating_points: str | None, as_json: bool
) -> None:
    """Search once, or once for each target, and show what came of it."""
    from gemel_ray.merging.operating import parse_targets, search_operating_points
    from gemel_ray.merging.searching import search as run_search

    # Tune prints a header of its own; stdout is for the result alone.
    if operating_points is not None:
        with working("searching", speaks=True), redirect_stdout(sys.stderr):
            points = search_operating_points(workload, store, options, parse_targets(operating_points), tell)
        show_result([asdict(point) for point in points], as_json, render_merging.operating_points_table)
        return
    with working("searching", speaks=True), redirect_stdout(sys.stderr):
        manifest = run_search(workload, store, options, tell)
    show_result(manifest.model_dump(mode="json"), as_json, render_stores.manifest_tables)

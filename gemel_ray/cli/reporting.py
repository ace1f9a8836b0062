"""`gemel report`: what a release came to, as one page."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gemel_ray.cli.common import AllowFactories, AsJson, ReleaseNumber, StoreUri, show_result
from gemel_ray.cli.progress import working
from gemel_ray.spec.errors import InputError

# Of simulated traffic.
_SECONDS = 30


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(report)


def report(
    store: StoreUri,
    release: ReleaseNumber = None,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(help="Also write every plot into this folder, light and dark.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Simulate on this device: what `gemel profile` wrote.")] = None,
    rates: Annotated[str | None, typer.Option(help="Simulate on a device of published rates: t4, l4, ...")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Budgets to simulate, such as 24MiB,32MiB; four without it.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policies to simulate, such as ours_released,time_space; all without it.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Of simulated traffic, a day at most; 30 without it.")] = None,
    workload: Annotated[
        Path | None, typer.Option(help="Simulate end-to-end accuracy too, on frames of this workload's feeds.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Recorded answers: read from here, or recorded and written here.")
    ] = None,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Write one self-contained HTML page: what is shared, saved, how accurate it is, how the search went.

    With --profile or --rates also goodput against memory for every policy. Needs matplotlib.

    Examples:

    gemel report gemel-demo/store

    gemel report gemel-demo/store --profile profile.json --workload gemel-demo/workload.yaml --png plots
    """
    from gemel_ray.engine.simulating import SimulationOptions, simulate_store
    from gemel_ray.report.writing import check_plotting, write_report
    from gemel_ray.spec.workload import load_workload
    from gemel_ray.weights.outputs import check_output

    check_plotting()
    check_output(out)
    check_output(None if png is None else png / "plot.png")
    rows = []
    if profile is not None or rates is not None:
        options = SimulationOptions(
            release=release, profile=profile, rates=rates, memory=memory, policy=policy,
            seconds=_SECONDS if seconds is None else seconds, answers=answers, allow_factories=allow_factories,
        )  # fmt: skip
        asked = None if workload is None else load_workload(workload)
        with working("simulating every policy and budget") as advance:
            rows = simulate_store(store, options, asked, advance)
    else:
        _refuse_without_device(memory=memory, policy=policy, seconds=seconds, workload=workload, answers=answers)
    with working("drawing"):
        document = write_report(store, out, release=release, png=png, simulations=rows, allow_factories=allow_factories)
    show_result(document, as_json, _told)


def _refuse_without_device(**given: object) -> None:
    """Options that only a simulation heeds would be passed over without a word."""
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"--{name} {value}: is for simulating; also give --profile (from `gemel profile STORE --out FILE`) or "
                "--rates (a device's name)"
            )


def _told(document: Mapping[str, Any]) -> None:
    print(document["report"])
    for path in document["pictures"]:
        print(path)
    for note in document["notes"]:
        print(f"note: {note}", file=sys.stderr)

"""The whole story in one command."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from gemel_ray.cli import render_demo
from gemel_ray.cli.common import AsJson, show_result, tell
from gemel_ray.cli.progress import working


def register(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("gemel-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Four small cameras, about two minutes.")] = False,
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
    with working("the demonstration", speaks=True), redirect_stdout(sys.stderr):
        document = run_demo(options, tell)
    show_result(document, as_json, render_demo.demo_tables)

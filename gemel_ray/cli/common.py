"""What several commands take and how all of them give their result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

WorkloadFile = Annotated[Path, typer.Argument(help="A workload file (YAML).", metavar="WORKLOAD")]
StoreUri = Annotated[
    str, typer.Argument(help="A store: a folder, or a URI such as s3://bucket/store.", metavar="STORE")
]
ReleaseNumber = Annotated[int | None, typer.Option(min=1, help="A release's number; HEAD's without it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Thumbnails = Annotated[
    bool,
    typer.Option("--thumbnails/--no-thumbnails", help="Show each camera's newest frame, small, to those who may read."),
]
Ways = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WAY",
        help="Also try to compute like this, and do where it is a tenth faster: channels_last, bfloat16 or float16. "
        "Answers then differ by rounding. Repeatable.",
    ),
]
TlsCert = Annotated[Path | None, typer.Option(help="Speak HTTPS, with this certificate (PEM, its chain in it).")]
TlsKey = Annotated[Path | None, typer.Option(help="The certificate's key (PEM, without a passphrase).")]
AllowFactories = Annotated[bool, typer.Option(help="Let the workload run its own model factories (code).")]


def show_result(document: Any, as_json: bool, table: Callable[[Any], None]) -> None:  # noqa: ANN401 - any JSON
    """Print a command's result, for programs or for people."""
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        table(document)


def tell(line: str) -> None:
    """Say how far a command is; stdout is for the result alone."""
    print(line, file=sys.stderr, flush=True)

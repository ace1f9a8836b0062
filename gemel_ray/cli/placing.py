"""`gemel place`: which node runs which query, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gemel_ray.cli.common import AllowFactories
from gemel_ray.cli.progress import working
from gemel_ray.cli.render import Document, percent, results, show_table, table
from gemel_ray.spec.units import format_bytes


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(place)


def place(
    workload: Annotated[Path, typer.Argument(help="A workload file (YAML) with its nodes.", metavar="WORKLOAD")],
    store: Annotated[str, typer.Option(help="The store of the release to place: a folder or a URI.")],
    release: Annotated[int | None, typer.Option(min=1, help="A release's number; HEAD's without it.")] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="[NODE=]FILE", help="What `gemel profile --out` wrote, for all nodes or one. Repeatable."),
    ] = None,
    rates: Annotated[
        list[str] | None,
        typer.Option(metavar="[NODE=]NAME", help="Estimate instead, from published rates: t4, l4, ... Repeatable."),
    ] = None,
    current: Annotated[
        Path | None, typer.Option(help="What runs where now (an earlier --json document): few queries move.")
    ] = None,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Plan which node runs which query of a release, and say why. Needs no cluster.

    Example: gemel place workload.yaml --store ./store --rates t4 --rates box-b=l4
    """
    from gemel_ray.engine.placing import PlacingOptions, place_store
    from gemel_ray.spec.workload import load_workload

    options = PlacingOptions(
        release=release, profiles=tuple(profile or ()), rates=tuple(rates or ()), current=current, seed=seed,
        allow_factories=allow_factories,
    )  # fmt: skip
    asked = load_workload(workload)
    with working("placing queries"):
        document = place_store(asked, store, options)
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        placement_tables(document)


def placement_tables(document: Document) -> None:
    """Nodes, queries, what to look after, and what dealing in turn would have given."""
    console = results()
    show_table(_nodes(document))
    show_table(_queries(document))
    for line in _warnings(document):
        console.print(line)
    dealt = document["dealt_in_turn"]
    console.print(
        f"Worst query: {percent(document['worst_goodput_fraction'])} of its frames in time expected; "
        f"{format_bytes(document['spared_bytes'])} spared by sharing. Dealt in turn: "
        f"{percent(dealt['worst_goodput_fraction'])} and {format_bytes(dealt['spared_bytes'])}. "
        f"{len(document['moved'])} queries move."
    )


def _nodes(document: Document) -> Table:
    shown = table(
        f"Release {document['release']} of {document['workload']} on its nodes",
        "node", "device", "memory", "shared", "private", "free", "busy", "queries",
    )  # fmt: skip
    for row in document["nodes"]:
        over_bytes = row["over_bytes"]
        shown.add_row(
            row["node"],
            row["device"] + (" (estimated)" if row["estimated"] else ""),
            *(format_bytes(row[f"{key}_bytes"]) for key in ("memory", "shared", "private")),
            f"{format_bytes(over_bytes)} over" if over_bytes else format_bytes(row["free_bytes"]),
            percent(row["load_fraction"]),
            str(len(row["queries"])),
        )
    return shown


def _queries(document: Document) -> Table:
    shown = table("Queries", "query", "node", "goodput", "why there")
    for row in document["queries"]:
        shown.add_row(row["query"], row["node"], percent(row["goodput_fraction"]), row["reason"])
    return shown


def _warnings(document: Document) -> list[str]:
    """Every node that is asked for more than it has, and the way out."""
    found = []
    for row in document["nodes"]:
        if row["over_bytes"]:
            found.append(
                f"{row['node']}: {format_bytes(row['over_bytes'])} more than its memory, so weights are swapped; "
                "give it that much more, or add a node"
            )
        if row["overloaded"]:
            found.append(
                f"{row['node']}: computing ({percent(row['load_fraction'])} of its time) and swapping ask for "
                f"{row['pressure']:.2f} times what it can do in time, so frames will be dropped; add a node, or lower "
                "frame rates"
            )
    return found

"""Commands that look into a store and keep it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gemel_ray.cli import render_stores
from gemel_ray.cli.common import AllowFactories, AsJson, ReleaseNumber, StoreUri, show_result
from gemel_ray.cli.progress import working
from gemel_ray.spec.errors import StoreError


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (releases, show, diff, verify, revert, pin, unpin, gc, export):
        app.command()(command)


def releases(store: StoreUri, as_json: AsJson = False) -> None:
    """List a store's releases. Exit code 1 when one of them is damaged.

    Example: gemel releases gemel-demo/store
    """
    from gemel_ray.weights.store import open_store

    opened = open_store(store)
    head, pinned = opened.head(), opened.pinned()
    rows = []
    for number in opened.releases():
        try:
            rows.append(render_stores.release_row(opened.manifest(number), head=head, pinned=pinned))
        except StoreError as error:
            rows.append(render_stores.damaged_row(number, str(error), head=head, pinned=pinned))
    show_result(rows, as_json, render_stores.releases_table)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


def show(
    store: StoreUri,
    release: ReleaseNumber = None,
    as_json: AsJson = False,
) -> None:
    """Show one release: accuracies, bytes before and after, how it was made.

    Example: gemel show gemel-demo/store --release 3
    """
    from gemel_ray.weights.store import open_store

    show_result(open_store(store).manifest(release).model_dump(mode="json"), as_json, render_stores.manifest_tables)


def verify(store: StoreUri, as_json: AsJson = False) -> None:
    """Check every blob and manifest of a store. Exit code 1 when something is wrong.

    Example: gemel verify gemel-demo/store
    """
    from gemel_ray.weights.store import open_store

    with working("reading every blob"):
        problems = [{"path": problem.path, "what": problem.what} for problem in open_store(store).verify()]
    show_result(problems, as_json, render_stores.problems_table)
    if problems:
        raise typer.Exit(1)


def diff(
    store: StoreUri,
    before: Annotated[int, typer.Argument(min=1, help="A release's number.", metavar="A")],
    after: Annotated[int, typer.Argument(min=1, help="Another's.", metavar="B")],
    as_json: AsJson = False,
) -> None:
    """Compare two releases: queries, sharing, accuracies, and what an edge box would fetch to go from A to B.

    Example: gemel diff gemel-demo/store 1 3
    """
    from gemel_ray.weights.comparison import diff_releases
    from gemel_ray.weights.store import open_store

    opened = open_store(store)
    found = diff_releases(opened.manifest(before), opened.manifest(after))
    show_result(asdict(found), as_json, render_stores.diff_tables)


def revert(
    store: StoreUri,
    to: Annotated[int | None, typer.Option(min=1, help="The release to go back to; HEAD's parent without it.")] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="Run this query's original again, in a new release made from --to (else HEAD). Repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make HEAD an earlier release, or publish a new one in which some queries run their originals again.

    A search that is still running makes its next improvement HEAD: end it first.

    Example: gemel revert gemel-demo/store --query main_2nd
    """
    from gemel_ray.weights.maintenance import revert_head, revert_queries
    from gemel_ray.weights.store import open_store

    opened = open_store(store)
    manifest = revert_queries(opened, list(dict.fromkeys(query)), to) if query else revert_head(opened, to)
    show_result(manifest.model_dump(mode="json"), as_json, render_stores.reverted_tables)


def pin(
    store: StoreUri,
    release: Annotated[
        int | None, typer.Option(min=1, help="The release that stays; the one served now without it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a release stay: what is published later is not served until `gemel unpin`.

    Searches go on and publish; services and edge boxes that follow the store take the pinned release.

    Example: gemel pin gemel-demo/store --release 3
    """
    from gemel_ray.weights.maintenance import pin
    from gemel_ray.weights.store import open_store

    show_result(pin(open_store(store), release).model_dump(mode="json"), as_json, render_stores.pinned_tables)


def unpin(store: StoreUri, as_json: AsJson = False) -> None:
    """Serve the store's HEAD again, now and later.

    Example: gemel unpin gemel-demo/store
    """
    from gemel_ray.weights.maintenance import unpin
    from gemel_ray.weights.store import open_store

    show_result(unpin(open_store(store)).model_dump(mode="json"), as_json, render_stores.reverted_tables)


def gc(
    store: StoreUri,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Also remove releases but the newest N, HEAD, a pinned one, and what these and searches need."
        ),
    ] = None,
    grace_hours: Annotated[
        float,
        typer.Option(min=0, help="Spare blobs younger than this: a search puts them before it publishes them."),
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove blobs that no release names and leftovers of interrupted writes; never HEAD's, nor the originals.

    Searches may run meanwhile. On object stores, which know no locks, the grace period alone protects what they put.

    Example: gemel gc gemel-demo/store --keep 3 --dry-run
    """
    from gemel_ray.weights.garbage import collect_garbage
    from gemel_ray.weights.store import open_store

    with working("looking for what nothing needs"):
        garbage = collect_garbage(open_store(store), keep=keep, grace_hours=grace_hours, dry_run=dry_run)
    document = render_stores.garbage_document(garbage, grace_hours=grace_hours, dry_run=dry_run)
    show_result(document, as_json, render_stores.garbage_table)


def export(
    store: StoreUri,
    query: Annotated[str, typer.Argument(help="The query whose model to write.", metavar="QUERY")],
    out: Annotated[Path, typer.Option(help="The file; its ending tells the format: .safetensors, .pt, .pt2, .onnx.")],
    format: Annotated[
        str | None, typer.Option(help="safetensors or torch (a state dict), exported (torch.export) or onnx.")
    ] = None,
    release: ReleaseNumber = None,
    as_json: AsJson = False,
    allow_factories: AllowFactories = False,
) -> None:
    """Write one merged model to a file of its own, checked against the release's before it is put in place.

    Example: gemel export gemel-demo/store main_2nd --out main_2nd.safetensors
    """
    from gemel_ray.vision.exporting import export_query
    from gemel_ray.weights.store import open_store

    with working("writing the model, reading it again, comparing"):
        found = export_query(
            open_store(store), query, out, format=format, release=release,  # type: ignore[arg-type]
            allow_factories=allow_factories,
        )  # fmt: skip
    show_result(asdict(found), as_json, render_stores.exported_line)

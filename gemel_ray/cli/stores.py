"""Commands that look into a store."""

from __future__ import annotations

import typer

from gemel_ray.cli import render_stores
from gemel_ray.cli.common import AsJson, ReleaseNumber, StoreUri, show_result


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (releases, show, verify):
        app.command()(command)


def releases(store: StoreUri, as_json: AsJson = False) -> None:
    """List a store's releases.

    Example: gemel releases gemel-demo/store
    """
    from gemel_ray.weights.store import open_store

    opened = open_store(store)
    rows = [render_stores.release_row(opened.manifest(number), head=opened.head()) for number in opened.releases()]
    show_result(rows, as_json, render_stores.releases_table)


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

    problems = [{"path": problem.path, "what": problem.what} for problem in open_store(store).verify()]
    show_result(problems, as_json, render_stores.problems_table)
    if problems:
        raise typer.Exit(1)

"""Tables of the commands that look into a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from gemel_ray.cli.render import Document, percent, table
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import format_bytes


def release_row(manifest: Manifest, *, head: int | None) -> dict[str, Any]:
    """One release in a few numbers."""
    worst = min((q.accuracy.agreement for q in manifest.queries.values() if q.accuracy), default=None)
    return {
        "release": manifest.release,
        "is_head": manifest.release == head,
        "parent": manifest.parent,
        "created_at": manifest.provenance.created_at,
        "queries": len(manifest.queries),
        "bytes_before": manifest.bytes_before,
        "bytes_after": manifest.bytes_after,
        "worst_agreement": worst,
        "note": manifest.provenance.note,
    }


def releases_table(rows: Sequence[Document]) -> None:
    """One line for each release."""
    shown = table("Releases", "release", "made", "size", "saved", "worst agreement", "note")
    for row in rows:
        saved = percent(1 - row["bytes_after"] / row["bytes_before"])
        name = f"{row['release']}{' (HEAD)' if row['is_head'] else ''}"
        agreement = percent(row["worst_agreement"])
        shown.add_row(name, row["created_at"], format_bytes(row["bytes_after"]), saved, agreement, row["note"])
    Console().print(shown)


def manifest_tables(document: Document) -> None:
    """A release's accuracies and bytes."""
    console = Console()
    shown = table(
        f"Release {document['release']} of {document['workload_name']}", "query", "agreement", "lower bound", "target"
    )
    for name, released in document["queries"].items():
        accuracy = released["accuracy"] or {}
        shown.add_row(name, *(percent(accuracy.get(key)) for key in ("agreement", "lower_bound", "target")))
    console.print(shown)
    before, after = document["bytes_before"], document["bytes_after"]
    console.print(f"{format_bytes(before)} before, {format_bytes(after)} after: {percent(1 - after / before)} saved")


def problems_table(problems: Sequence[Document]) -> None:
    """What `verify` found."""
    if not problems:
        Console().print("The store is whole.")
        return
    shown = table(f"{len(problems)} problems", "file", "what is wrong")
    for problem in problems:
        shown.add_row(problem["path"], problem["what"])
    Console().print(shown)

"""Tables and documents of the commands that look into a store and keep it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from gemel_ray.cli.render import Document, brief_signature, percent, results, show_table, table
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import counted, format_bytes, readable_time

if TYPE_CHECKING:
    # Its file systems take a moment to load, and most commands do without.
    from gemel_ray.weights.garbage import Garbage


_MOST_LAYERS = 8


def release_row(manifest: Manifest, *, head: int | None, pinned: int | None = None) -> dict[str, Any]:
    """One release in a few numbers."""
    worst = min((q.accuracy.agreement for q in manifest.queries.values() if q.accuracy), default=None)
    return {
        "release": manifest.release,
        "is_head": manifest.release == head,
        "is_pinned": manifest.release == pinned,
        "parent": manifest.parent,
        "created_at": manifest.provenance.created_at,
        "queries": len(manifest.queries),
        "bytes_before": manifest.bytes_before,
        "bytes_after": manifest.bytes_after,
        "worst_agreement": worst,
        "note": manifest.provenance.note,
        "problem": None,
    }


def damaged_row(number: int, problem: str, *, head: int | None, pinned: int | None = None) -> dict[str, Any]:
    """The same of a release whose manifest cannot be read: what is wrong with it, and little else."""
    unknown = ("parent", "created_at", "queries", "bytes_before", "bytes_after", "worst_agreement", "note")
    known = {"release": number, "is_head": number == head, "is_pinned": number == pinned, "problem": problem}
    return known | dict.fromkeys(unknown)


def releases_table(rows: Sequence[Document]) -> None:
    """One line for each release."""
    shown = table("Releases", "release", "made", "size", "saved", "worst agreement", "note")
    for row in rows:
        marks = ", ".join(mark for key, mark in (("is_head", "HEAD"), ("is_pinned", "pinned")) if row[key])
        name = f"{row['release']}{marks and f' ({marks})'}"
        if row["problem"]:
            shown.add_row(name, "-", "-", "-", "-", f"damaged: {row['problem']}")
            continue
        saved, agreement = percent(1 - row["bytes_after"] / row["bytes_before"]), percent(row["worst_agreement"])
        made, size = readable_time(row["created_at"]), format_bytes(row["bytes_after"])
        shown.add_row(name, made, size, saved, agreement, row["note"])
    show_table(shown)


def manifest_tables(document: Document) -> None:
    """A release's accuracies and bytes."""
    console = results()
    shown = table(
        f"Release {document['release']} of {document['workload_name']}", "query", "agreement", "lower bound", "target"
    )
    for name, released in document["queries"].items():
        accuracy = released["accuracy"] or {}
        shown.add_row(name, *(percent(accuracy.get(key)) for key in ("agreement", "lower_bound", "target")))
    show_table(shown)
    before, after = document["bytes_before"], document["bytes_after"]
    console.print(f"{format_bytes(before)} before, {format_bytes(after)} after: {percent(1 - after / before)} saved")


def problems_table(problems: Sequence[Document]) -> None:
    """What `verify` found."""
    if not problems:
        results().print("The store is whole.")
        return
    shown = table(counted(len(problems), "problem"), "file", "what is wrong")
    for problem in problems:
        shown.add_row(problem["path"], problem["what"])
    show_table(shown)


def diff_tables(document: Document) -> None:
    """Queries, layers that begin or cease to share, and what an edge box fetches."""
    console = results()
    names = document["before"], document["after"]
    shown = table(
        f"Agreement, from release {names[0]} to {names[1]}",
        "query",
        "state",
        "what",
        "before",
        "after",
        "bound",
        "target",
    )
    for row in document["queries"]:
        keys = ("agreement_before", "agreement_after", "lower_bound_after", "target_after")
        shown.add_row(row["query"], row["state"], ", ".join(row["changed"]), *(percent(row[key]) for key in keys))
    show_table(shown)
    for key, title in (("share_now", "Layers that share now"), ("share_no_longer", "Layers that share no longer")):
        if document[key]:
            show_table(_sharing_table(title, document[key]))
    before, after = document["bytes_before"], document["bytes_after"]
    fetched = counted(document["fetch_blobs"], "blob")
    console.print(
        f"Weights: {format_bytes(before)} before, {format_bytes(after)} after. An edge box that holds {names[0]} "
        f"fetches {format_bytes(document['fetch_file_bytes'])} in {fetched}, and has the other "
        f"{document['kept_blobs']}."
    )


def _sharing_table(title: str, rows: Sequence[Document]) -> Table:
    """The heaviest layers, by how many bytes their copies weigh less or more."""
    heaviest = sorted(rows, key=lambda row: -row["layer_bytes"] * abs(row["copies_before"] - row["copies_after"]))
    shown = table(title, "layer", "shared by", "copies", "size")
    for row in heaviest[:_MOST_LAYERS]:
        counts = Counter(member.partition(":")[0] for member in row["members"])
        queries = ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())
        copies = f"{row['copies_before']} → {row['copies_after']}"
        shown.add_row(brief_signature(row["signature"]), queries, copies, format_bytes(row["layer_bytes"]))
    if (more := len(rows) - _MOST_LAYERS) > 0:
        shown.caption_justify = "left"
        shown.caption = f"and {more} lighter ones (--json lists all)"
    return shown


def reverted_tables(document: Document) -> None:
    """The release that is HEAD now."""
    manifest_tables(document)
    results().print(f"HEAD is release {document['release']} now; `gemel serve` and edge boxes take it from here on.")


def pinned_tables(document: Document) -> None:
    """The release that stays."""
    manifest_tables(document)
    results().print(f"Release {document['release']} is served, whatever is published, until `gemel unpin`.")


def garbage_document(garbage: Garbage, *, grace_hours: float, dry_run: bool) -> dict[str, Any]:
    """What `gemel gc --json` prints; sizes in bytes of files."""
    return {
        "dry_run": dry_run,
        "releases": list(garbage.releases),
        "blobs": [entry.name for entry in garbage.blobs],
        "leftovers": [entry.name for entry in garbage.leftovers],
        "freed_bytes": garbage.freed_bytes,
        "grace_hours": grace_hours,
        "young_blobs": len(garbage.young),
        "young_bytes": sum(entry.file_bytes for entry in garbage.young),
    }


def garbage_table(document: Document) -> None:
    """What went, or would go, and what is spared for now."""
    console = results()
    releases = ", ".join(map(str, document["releases"])) or "none"
    blobs, leftovers = (counted(len(document[key]), key[:-1]) for key in ("blobs", "leftovers"))
    console.print(
        f"{'Would remove' if document['dry_run'] else 'Removed'}: releases: {releases}; {blobs} and {leftovers}, "
        f"{format_bytes(document['freed_bytes'])}."
    )
    if document["young_blobs"]:
        young = counted(document["young_blobs"], "unused blob")
        console.print(
            f"Spared: {young} ({format_bytes(document['young_bytes'])}) younger than "
            f"{document['grace_hours']:g} h, since a search may be about to publish them. Where none is running, "
            "--grace-hours 0 takes them too."
        )


def exported_line(document: Document) -> None:
    """What was written, and how to use it."""
    file = f"{document['file']} ({document['format']}, {format_bytes(document['file_bytes'])})"
    results().print(
        f"{file}: {document['architecture']} of query {document['query']}, release {document['release']}. It takes "
        f"{document['takes']} and answers for {', '.join(document['classes'])}."
    )

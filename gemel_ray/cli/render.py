"""Tables for people, from the same plain documents that --json prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from gemel_ray.policy.grouping import Analysis, heavy_hitters
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.units import format_bytes

Document = Mapping[str, Any]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        numeric = column.endswith(
            (
                "size",
                "layers",
                "saved",
                "share",
                "agreement",
                "target",
                "bound",
                "frames",
                "accuracy",
                "merged",
                "swapped",
            )
        )
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=place == 0)
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def analysis_document(analysis: Analysis) -> dict[str, Any]:
    """What `gemel analyze --json` prints; all sizes in bytes."""
    return {
        "rule": analysis.rule,
        "total_bytes": analysis.total_bytes,
        "layer_bytes": analysis.layer_bytes,
        "shareable_bytes": analysis.shareable_bytes,
        "models": [
            {
                "query": inventory.query,
                "builder": inventory.builder,
                "total_bytes": inventory.total_bytes,
                "layer_bytes": inventory.layer_bytes,
                "layers": len(inventory.layers),
                "heavy_hitters": [layer.path for layer in heavy_hitters(inventory)],
            }
            for inventory in analysis.inventories
        ],
        "groups": [
            {
                "signature": group.signature,
                "layer_bytes": group.layer_bytes,
                "saved_bytes": group.saved_bytes,
                "members": [str(member) for member in group.members],
            }
            for group in analysis.groups
        ],
    }


def analysis_tables(document: Document, top: int) -> None:
    """Models, then groups in memory-forward order, then the bound."""
    console = Console()
    models = _table("Models", "query", "architecture", "size", "layers", "half of it sits in")
    for model in document["models"]:
        hitters = model["heavy_hitters"]
        where = ", ".join(hitters[:3]) + (f" and {len(hitters) - 3} more" if len(hitters) > 3 else "")
        size, layers = format_bytes(model["total_bytes"]), str(model["layers"])
        models.add_row(model["query"], model["builder"], size, layers, where)
    console.print(models)
    groups = _table(f"Layer groups, memory-forward (rule {document['rule']})", "signature", "members", "saved", "share")
    for group in document["groups"][:top]:
        share = _percent(group["saved_bytes"] / document["layer_bytes"])
        groups.add_row(group["signature"], str(len(group["members"])), format_bytes(group["saved_bytes"]), share)
    console.print(groups)
    if (more := len(document["groups"]) - top) > 0:
        console.print(f"... and {more} lighter groups (--top {len(document['groups'])} shows all)")
    share = document["shareable_bytes"] / document["layer_bytes"]
    console.print(
        f"All weights: {format_bytes(document['layer_bytes'])}. Sharing across models could save at most "
        f"[bold]{format_bytes(document['shareable_bytes'])}[/bold] ({_percent(share)})."
    )


def originals_table(rows: Sequence[Document]) -> None:
    """One line for each original."""
    table = _table("Originals", "query", "architecture", "accuracy", "gate frames", "weights")
    for row in rows:
        accuracy = _percent(row["gate_accuracy"])
        table.add_row(row["query"], row["builder"], accuracy, str(row["gate_frames"]), row["weights"])
    Console().print(table)


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
    table = _table("Releases", "release", "made", "size", "saved", "worst agreement", "note")
    for row in rows:
        saved = _percent(1 - row["bytes_after"] / row["bytes_before"])
        name = f"{row['release']}{' (HEAD)' if row['is_head'] else ''}"
        agreement = _percent(row["worst_agreement"])
        table.add_row(name, row["created_at"], format_bytes(row["bytes_after"]), saved, agreement, row["note"])
    Console().print(table)


def manifest_tables(document: Document) -> None:
    """A release's accuracies and bytes."""
    console = Console()
    table = _table(
        f"Release {document['release']} of {document['workload_name']}", "query", "agreement", "lower bound", "target"
    )
    for name, released in document["queries"].items():
        accuracy = released["accuracy"] or {}
        table.add_row(name, *(_percent(accuracy.get(key)) for key in ("agreement", "lower_bound", "target")))
    console.print(table)
    before, after = document["bytes_before"], document["bytes_after"]
    console.print(f"{format_bytes(before)} before, {format_bytes(after)} after: {_percent(1 - after / before)} saved")


def demo_tables(document: Document) -> None:
    """Memory, and what it means for every query; then where to go on from here."""
    console = Console()
    before, after = document["bytes_before"], document["bytes_after"]
    console.print(
        f"\n[bold]Memory[/bold]: {format_bytes(before)} of originals became {format_bytes(after)} "
        f"({_percent(1 - after / before)} saved; sharing across models could save at most "
        f"{_percent(document['shareable_bytes'] / before)}). The box has {format_bytes(document['budget_bytes'])}.\n"
    )
    quality = _table("Accuracy on frames unseen in training", "query", "original accuracy", "merged accuracy",
                     "agreement", "lower bound", "target")  # fmt: skip
    for row in document["queries"]:
        percents = ("original_accuracy", "merged_accuracy", "agreement", "lower_bound", "target")
        quality.add_row(row["query"], *(_percent(row[key]) for key in percents))
    console.print(quality)
    served = _table("The same frames in the same memory", "query", "goodput, swapped", "goodput, merged",
                    "end-to-end, swapped", "end-to-end, merged")  # fmt: skip
    for row in document["queries"]:
        pairs = (row["goodput"], row["end_to_end_accuracy"])
        served.add_row(row["query"], *(_percent(pair[side]) for pair in pairs for side in ("originals", "merged")))
    console.print(served)
    first = document["queries"][0]
    console.print(
        f"{first['fps']:g} frames a second and camera, an answer within {first['slo_ms']:g} ms. Swapped: the "
        "originals, loaded in turn; merged: this release. Goodput: answered in time / arrived. End-to-end: the answers "
        f"given, stale ones included, against the original's on every frame.\nIt took {document['seconds']:.0f} s. "
        f"Store: {document['store']}, workload: {document['workload']}\n"
        f"Go on: gemel show {document['store']} · gemel serve {document['workload']} --store {document['store']}"
    )


def profile_table(document: Document) -> None:
    """What each query's inferences cost, and how fast weights load."""
    table = _table(f"On {document['device']}", "query", "run ms by batch size", "workspace by batch size")
    for name, query in document["queries"].items():
        run = ", ".join(f"{size}: {took:.1f}" for size, took in query["run_ms"].items())
        space = ", ".join(f"{size}: {format_bytes(held)}" for size, held in query["workspace_bytes"].items())
        table.add_row(name, run, space)
    Console().print(table)
    rate = format_bytes(round(1000 * document["load_bytes_per_ms"]))
    Console().print(f"Loading a weight set: {document['load_fixed_ms']:.2f} ms and its bytes at {rate} a second")


def simulations_table(rows: Sequence[Document]) -> None:
    """One table a budget, one line a policy."""
    console = Console()
    for budget_bytes in dict.fromkeys(row["budget_bytes"] for row in rows):
        kind = "estimated" if rows[0]["estimated"] else "measured"
        table = _table(
            f"{format_bytes(budget_bytes)} on {rows[0]['device']} ({kind})", "policy", "goodput share",
            "worst query share", "stale share", "weights size", "swapped size", "busy share",
        )  # fmt: skip
        for row in (row for row in rows if row["budget_bytes"] == budget_bytes):
            table.add_row(row["policy"], *_simulated(row))
        console.print(table)
    for problem in dict.fromkeys(row["problem"] for row in rows if "problem" in row):
        console.print(f"does not fit: {problem}")


def _simulated(row: Document) -> tuple[str, ...]:
    if "problem" in row:
        return ("does not fit",)
    stale = row["stale_fraction"].values()
    return (
        _percent(row["mean_goodput_fraction"]),
        _percent(row["worst_goodput_fraction"]),
        _percent(sum(stale) / len(stale)),
        format_bytes(row["weights_bytes"]),
        format_bytes(row["swap_bytes"]),
        _percent(row["busy_fraction"]),
    )


def operating_points_table(rows: Sequence[Document]) -> None:
    """What each target costs and brings."""
    table = _table("Operating points", "target", "release", "size", "saved", "worst agreement", "its lower bound")
    for row in rows:
        saved = _percent(1 - row["bytes_after"] / row["bytes_before"])
        size = format_bytes(row["bytes_after"])
        agreement, bound = _percent(row["worst_agreement"]), _percent(row["worst_lower_bound"])
        table.add_row(_percent(row["target"]), str(row["release"]), size, saved, agreement, bound)
    Console().print(table)


def problems_table(problems: Sequence[Document]) -> None:
    """What `verify` found."""
    if not problems:
        Console().print("The store is whole.")
        return
    table = _table(f"{len(problems)} problems", "file", "what is wrong")
    for problem in problems:
        table.add_row(problem["path"], problem["what"])
    Console().print(table)

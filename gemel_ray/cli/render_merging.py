"""Tables and documents of the commands that merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemel_ray.cli.render import Document, brief_signature, percent, results, show_table, table
from gemel_ray.policy.grouping import Analysis, heavy_hitters
from gemel_ray.spec.units import format_bytes


def analysis_document(analysis: Analysis) -> dict[str, Any]:
    """What `gemel analyze --json` prints; all sizes in bytes."""
    return {
        "rule": analysis.rule,
        "total_bytes": analysis.total_bytes,
        "layer_bytes": analysis.layer_bytes,
        "shareable_bytes": analysis.shareable_bytes,
        "widest_shareable_bytes": analysis.widest_shareable_bytes,
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
    console = results()
    models = table("Models", "query", "architecture", "size", "layers", "half of it sits in")
    for model in document["models"]:
        hitters = model["heavy_hitters"]
        where = ", ".join(hitters[:3]) + (f" and {len(hitters) - 3} more" if len(hitters) > 3 else "")
        size, layers = format_bytes(model["total_bytes"]), str(model["layers"])
        models.add_row(model["query"], model["builder"], size, layers, where)
    show_table(models)
    groups = table(f"Layer groups, memory-forward (rule {document['rule']})", "signature", "members", "saved", "share")
    for group in document["groups"][:top]:
        share = percent(group["saved_bytes"] / document["layer_bytes"])
        signature, members = brief_signature(group["signature"]), str(len(group["members"]))
        groups.add_row(signature, members, format_bytes(group["saved_bytes"]), share)
    show_table(groups)
    if (more := len(document["groups"]) - top) > 0:
        console.print(f"... and {more} lighter groups (--top {len(document['groups'])} shows all)")
    share, widest = (document[key] / document["layer_bytes"] for key in ("shareable_bytes", "widest_shareable_bytes"))
    console.print(
        f"All weights: {format_bytes(document['layer_bytes'])}. Sharing across models could save at most "
        f"{format_bytes(document['shareable_bytes'])} ({percent(share)}); within models too, with smaller "
        f"layers as slices of larger ones, {format_bytes(document['widest_shareable_bytes'])} "
        f"({percent(widest)})."
    )


def originals_table(rows: Sequence[Document]) -> None:
    """One line for each original."""
    shown = table("Originals", "query", "architecture", "accuracy", "gate frames", "weights")
    for row in rows:
        accuracy = percent(row["gate_accuracy"])
        shown.add_row(row["query"], row["builder"], accuracy, str(row["gate_frames"]), row["weights"])
    show_table(shown)


def operating_points_table(rows: Sequence[Document]) -> None:
    """What each target costs and brings."""
    shown = table("Operating points", "target", "release", "size", "saved", "worst agreement", "its lower bound")
    for row in rows:
        saved = percent(1 - row["bytes_after"] / row["bytes_before"])
        size = format_bytes(row["bytes_after"])
        agreement, bound = percent(row["worst_agreement"]), percent(row["worst_lower_bound"])
        shown.add_row(percent(row["target"]), str(row["release"]), size, saved, agreement, bound)
    show_table(shown)

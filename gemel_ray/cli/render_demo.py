"""Tables of `gemel demo`."""

from __future__ import annotations

import shlex

from gemel_ray.cli.render import Document, percent, results, show_table, table
from gemel_ray.spec.units import format_bytes


def demo_tables(document: Document) -> None:
    """Memory, and what it means for every query; then where to go on from here."""
    console = results()
    before, after = document["bytes_before"], document["bytes_after"]
    console.print(
        f"\nMemory: {format_bytes(before)} of originals became {format_bytes(after)} "
        f"({percent(1 - after / before)} saved; sharing across models alone could save at most "
        f"{percent(document['shareable_bytes'] / before)}). The box has {format_bytes(document['budget_bytes'])}.\n"
    )
    quality = table("Accuracy on frames unseen in training", "query", "original accuracy", "merged accuracy",
                     "agreement", "lower bound", "target")  # fmt: skip
    for row in document["queries"]:
        percents = ("original_accuracy", "merged_accuracy", "agreement", "lower_bound", "target")
        quality.add_row(row["query"], *(percent(row[key]) for key in percents))
    show_table(quality)
    served = table("The same frames in the same memory", "query", "goodput, swapped", "goodput, merged",
                    "end-to-end, swapped", "end-to-end, merged")  # fmt: skip
    for row in document["queries"]:
        pairs = (row["goodput"], row["end_to_end_accuracy"])
        served.add_row(row["query"], *(percent(pair[side]) for pair in pairs for side in ("originals", "merged")))
    show_table(served)
    first = document["queries"][0]
    store, workload = (shlex.quote(document[key]) for key in ("store", "workload"))
    console.print(
        f"{first['fps']:g} frames a second and camera, an answer within {first['slo_ms']:g} ms. Swapped: the "
        "originals, loaded in turn; merged: this release. Goodput: answered in time / arrived. End-to-end: the answers "
        f"given, stale ones included, against the original's on every frame.\nIt took {document['seconds']:.0f} s. "
        f"Store: {document['store']}, workload: {document['workload']}\n"
        f"Go on: gemel show {store} · gemel serve {workload} --store {store}"
    )

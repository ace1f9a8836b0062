"""Tables of the commands for the edge box."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from gemel_ray.cli.render import Document, percent, table
from gemel_ray.spec.units import format_bytes


def profile_table(document: Document) -> None:
    """What each query's inferences cost, and how fast weights load."""
    shown = table(f"On {document['device']}", "query", "run ms by batch size", "workspace by batch size")
    for name, query in document["queries"].items():
        run = ", ".join(f"{size}: {took:.1f}" for size, took in query["run_ms"].items())
        space = ", ".join(f"{size}: {format_bytes(held)}" for size, held in query["workspace_bytes"].items())
        shown.add_row(name, run, space)
    Console().print(shown)
    rate = format_bytes(round(1000 * document["load_bytes_per_ms"]))
    Console().print(f"Loading a weight set: {document['load_fixed_ms']:.2f} ms and its bytes at {rate} a second")
    run, load = document["run_slowdown"], document["load_slowdown"]
    Console().print(f"Beside each other an inference takes {run:.2f} times as long, and a load {load:.2f} times")


def simulations_table(rows: Sequence[Document]) -> None:
    """One table a budget, one line a policy."""
    console = Console()
    for budget_bytes in dict.fromkeys(row["budget_bytes"] for row in rows):
        kind = "estimated" if rows[0]["estimated"] else "measured"
        shown = table(
            f"{format_bytes(budget_bytes)} on {rows[0]['device']} ({kind})", "policy", "goodput share",
            "worst query share", "end-to-end accuracy", "stale share", "weights size", "swapped size", "busy share",
        )  # fmt: skip
        for row in (row for row in rows if row["budget_bytes"] == budget_bytes):
            shown.add_row(row["policy"], *_simulated(row))
        console.print(shown)
    for problem in dict.fromkeys(row["problem"] for row in rows if "problem" in row):
        console.print(f"does not fit: {problem}")


def _simulated(row: Document) -> tuple[str, ...]:
    if "problem" in row:
        return ("does not fit",)
    stale = row["stale_fraction"].values()
    return (
        percent(row["mean_goodput_fraction"]),
        percent(row["worst_goodput_fraction"]),
        percent(row["mean_accuracy"]) if "mean_accuracy" in row else "-",
        percent(sum(stale) / len(stale)),
        format_bytes(row["weights_bytes"]),
        format_bytes(row["swap_bytes"]),
        percent(row["busy_fraction"]),
    )

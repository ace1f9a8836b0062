"""Tables of the commands for the edge box."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from gemel_ray.cli.render import Document, percent, results, show_table, table
from gemel_ray.spec.units import format_bytes


def profile_table(document: Document) -> None:
    """What each query's inferences cost, and how fast weights load."""
    shown = table(f"On {document['device']}", "query", "run ms by batch", "workspace by batch")
    for name, query in document["queries"].items():
        run = ", ".join(f"{size}: {took:.1f}" for size, took in query["run_ms"].items())
        space = ", ".join(f"{size}: {format_bytes(held)}" for size, held in query["workspace_bytes"].items())
        shown.add_row(name, run, space)
    show_table(shown)
    rate = format_bytes(round(1000 * document["load_bytes_per_ms"]))
    results().print(f"Loading a weight set: {document['load_fixed_ms']:.2f} ms and its bytes at {rate} a second")
    run, load = document["run_slowdown"], document["load_slowdown"]
    results().print(f"Beside each other an inference takes {run:.2f} times as long, and a load {load:.2f} times")


def simulations_table(rows: Sequence[Document]) -> None:
    """One table a budget, one line a policy; as narrow as a terminal."""
    console = results()
    for budget_bytes in dict.fromkeys(row["budget_bytes"] for row in rows):
        kind = "estimated" if rows[0]["estimated"] else "measured"
        title = f"{format_bytes(budget_bytes)} on {rows[0]['device']} ({kind})"
        show_table(_budget_table(title, [row for row in rows if row["budget_bytes"] == budget_bytes]))
    for problem in dict.fromkeys(row["problem"] for row in rows if "problem" in row):
        console.print(f"does not fit: {problem}")
    if any("problem" not in row for row in rows):
        console.print("Shares in %. In brackets: goodput where cameras' frames come at other moments.")


def _budget_table(title: str, rows: Sequence[Document]) -> Table:
    seen = "accuracy" if any("mean_accuracy" in row for row in rows) else "stale"
    shown = table(title, "policy", "goodput", "worst", seen, "size", "swapped", "busy")
    for row in rows:
        shown.add_row(row["policy"], *(("does not fit",) if "problem" in row else _simulated(row)))
    return shown


def _simulated(row: Document) -> tuple[str, ...]:
    stale = row["stale_fraction"].values()
    return (
        _goodput(row),
        _in_percent(row["worst_goodput_fraction"]),
        _in_percent(row.get("mean_accuracy", sum(stale) / len(stale))),
        format_bytes(row["weights_bytes"]),
        format_bytes(row["swap_bytes"]),
        _in_percent(row["busy_fraction"]),
    )


def _goodput(row: Document) -> str:
    """With what it is where frames come at other moments."""
    every = [row["mean_goodput_fraction"], *row["goodput_at_other_phases"]]
    least, most = f"{100 * min(every):.0f}", f"{100 * max(every):.0f}"
    return _in_percent(every[0]) + (f" ({least}-{most})" if least != most else "")


def _in_percent(fraction: float) -> str:
    return percent(fraction).removesuffix(" %")

"""Tables of a running service."""

from __future__ import annotations

from rich.table import Table

from gemel_ray.cli.render import Document, percent, results, show_table, table
from gemel_ray.spec.units import format_bytes


def status_tables(document: Document) -> None:
    """Nodes, queries, what the controller is at, and the last events."""
    console = results()
    if document["release"] is None:
        console.print("No engine has answered yet.")
    if document.get("pinned") is not None:
        console.print(f"Release {document['pinned']} is pinned: what is published later is not served.")
    show_table(_nodes(document))
    show_table(_queries(document))
    for line in _control(document.get("control")):
        console.print(line)
    for event in document["events"]:
        console.print(f"{event['at']}  {event['text']}", highlight=False)


def _nodes(document: Document) -> Table:
    shown = table("Nodes", "node", "release", "resident size", "budget size", "busy share", "problem")
    for node in document["nodes"]:
        memory = node["memory"] or {}
        held = [format_bytes(memory[key]) if memory else "-" for key in ("resident_bytes", "budget_bytes")]
        problem = node["problem"] or node.get("release_problem") or ""
        shown.add_row(node["name"], str(node["release"] or "-"), *held, percent(node["busy_fraction"]), problem)
    return shown


def _queries(document: Document) -> Table:
    shown = table(
        "Queries", "query", "node", "frames", "answered frames", "stale frames", "p95 latency", "last problem"
    )
    for query in document["queries"]:
        counts = ["-" if query[key] is None else str(query[key]) for key in ("arrived", "answered", "stale")]
        latency = "-" if query["p95_latency_ms"] is None else f"{query['p95_latency_ms']:.0f} ms"
        shown.add_row(query["name"], query["node"], *counts, latency, query["last_reason"] or "")
    return shown


def _control(control: Document | None) -> list[str]:
    if control is None:
        return []
    if control["problem"]:
        return [f"The controller does not answer ({control['problem']}); engines serve what they have."]
    found = [f"Release {control['target']} is to be served. {control['doing'] or 'All is as it should be.'}"]
    if control["blocked"]:
        found.append(f"Stopped: {control['blocked']}")
    return found + [f"{query} has no node: {reason}" for query, reason in control["unplaced"].items()]

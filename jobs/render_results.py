"""The README's tables of measurements, and all of bench_merge in jobs/results/MERGING.md, from the records there.

python jobs/render_results.py           # writes them
python jobs/render_results.py --check   # exit code 1 when they are not what the records say
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import edge_results
import engine_results
import gate_results
import merge_results
import records
from tables import percent, rows_of

README = Path(__file__).parent.parent / "README.md"
MERGING = records.RESULTS / "MERGING.md"
BEGIN, END = "<!-- measured: begin (python jobs/render_results.py) -->", "<!-- measured: end -->"

Record = Mapping[str, Any]


def edge(record: Record) -> Iterator[str]:
    """Geometric means of mean goodput against time/space sharing, where that loses frames; then what was lost to it."""
    yield (
        f"**{len(record['workloads'])} generated workloads** of full-size torchvision models, "
        f"{_queries(record)} queries, simulated on an estimated {record['options']['device']}, "
        f"{100 * float(record['options']['merged_fraction']):.0f} % of the shareable bytes merged, plans chosen on the "
        "six seconds of frames before those that count; goodput against time/space sharing (originals) where that "
        "answers less than 99 % of frames (geometric mean, number of workloads):\n"
    )
    policies = [name for name in record["policies"] if name != "time_space"]
    levels = edge_results.levels_of(record)
    table = [(f"{level:.0%}", *(_ratio(record, level, policy) for policy in policies)) for level in levels]
    yield from rows_of(("memory above one model", *policies), table)
    yield "\n" + "; ".join([*_behind(record, levels), *_families(record)]) + "."


def _queries(record: Record) -> str:
    counts = [len(workload["queries"]) for workload in record["workloads"]]
    return f"{min(counts)} to {max(counts)}"


def _ratio(record: Record, level: float, policy: str) -> str:
    found = edge_results.ratios(record, level, policy, "time_space", contested=True)
    return f"{edge_results.geometric_mean(found):.2f} x ({len(found)})" if found else "-"


def _behind(record: Record, levels: Sequence[float]) -> Iterator[str]:
    for policy in ("ours", "ours_merged", "ours_released"):
        every = [ratio for level in levels for ratio in edge_results.ratios(record, level, policy, "time_space")]
        lost = sum(edge_results.behind(record, level, policy, "time_space") for level in levels)
        yield (
            f"`{policy}` answers fewer frames than time/space sharing in {lost} of {len(every)} runs "
            f"(least {min(every):.3f} x)"
        )


def _families(record: Record) -> Iterator[str]:
    """How near to all-resident merged models of one architecture come with half the memory."""
    found = edge_results.ratios(record, 0.5, "ours_merged", "everything_resident", families=True)
    if found:
        yield (
            f"on the {len(found)} workloads of a single architecture, `ours_merged` at 50 % reaches "
            f"{edge_results.geometric_mean(found):.2f} x of everything resident (least {min(found):.2f} x)"
        )


def placement(record: Record) -> Iterator[str]:
    """Large fleets by load and memory; then gaps to the exact solver, and what simulated nodes make of a placement."""
    yield f"**Placement** of {record['options']['queries']} queries on {record['options']['nodes']} nodes:\n"
    heads = ("load", "memory", "worst goodput", "dealt in turn", "spared", "dealt in turn", "CPU", "moves, a node lost")
    table = [
        (
            f"{row['load']:.2f}", f"{row['memory']:.1f}",
            percent(row["ours"]["worst_goodput"]), percent(row["dealt"]["worst_goodput"]),
            f"{row['ours']['spared_bytes'] / 2**30:.1f} GiB", f"{row['dealt']['spared_bytes'] / 2**30:.1f} GiB",
            f"{row['ours']['cpu_s']:.1f} s", f"{row['node_lost']['moved']} for {row['homeless']} queries",
        )
        for row in record["large"]
    ]  # fmt: skip
    yield from rows_of(heads, table)
    yield "\n" + " ".join([*_exact_gaps(record), *_simulated_nodes(record)])


def _exact_gaps(record: Record) -> Iterator[str]:
    solved = [row for row in record["exact"] if "best" in row]
    if not solved:
        return
    for name, told in (("ours", "Placed by `gemel place`"), ("dealt", "dealt in turn")):
        gaps = [max(1 - row["best"]["pressure"] / row[name]["pressure"], 0.0) for row in solved]
        yield (
            f"{told}, the worst query's goodput is {percent(statistics.fmean(gaps))} from the best on average, "
            f"{percent(max(gaps))} at most;"
        )
    yield f"the best by HiGHS, on {len(solved)} of {len(record['exact'])} random small fleets that it solved."


def _simulated_nodes(record: Record) -> Iterator[str]:
    if rows := record["simulated"]:
        worst = {name: statistics.fmean(row[name]["worst"] for row in rows) for name in ("ours", "dealt")}
        yield (
            f"On {len(rows)} simulated fleets the worst query's goodput is {percent(worst['ours'])}, dealt in turn "
            f"{percent(worst['dealt'])}."
        )


def ordering(record: Record) -> Iterator[str]:
    """How far the order's local search and the batch sizes are from the best, and what fifty queries take."""
    gaps = [row["gap"] for row in record["orders"]]
    lost = [row["gap"] for row in record["batches"]]
    order_s, batches_s = ([row[name] for row in record["timed"]] for name in ("order_s", "batches_s"))
    yield (
        f"**Order and batch sizes**: the local search's order moves {percent(statistics.fmean(gaps))} more bytes than "
        f"the best of all orders, {percent(max(gaps))} at most ({len(gaps)} random nodes of "
        f"{record['options']['order_queries']} queries; the given order {percent(_mean_of(record, 'given_gap'))}); "
        f"batch sizes lose {100 * statistics.fmean(lost):.2f} points of the worst query's expected goodput, "
        f"{100 * max(lost):.2f} at most ({len(lost)} nodes of {record['options']['batch_queries']}). Fifty queries "
        "take "
        f"{max(order_s):.2f} s of CPU for the order and {max(batches_s):.2f} s for the batch sizes at most "
        f"({len(order_s)} nodes)."
    )


def _mean_of(record: Record, column: str) -> float:
    return statistics.fmean(row[column] for row in record["orders"])


def merging(record: Record) -> Iterator[str]:
    """Every cell of one workload."""
    yield merge_results.heading(record)
    yield from rows_of(merge_results.HEADS, list(merge_results.table(record)))


def merging_in_short(found: Sequence[Record]) -> str:
    """Our search and GEMEL's, of all workloads."""
    rows = [row for record in found for row in merge_results.summary(record)]
    heading = (
        "**Merging**, ours against GEMEL's own search on the same originals, frames and gates, one thread, so many CPU "
        "minutes a cell; every method, how it was run and what the workloads are: "
        "[jobs/results/MERGING.md](jobs/results/MERGING.md).\n"
    )
    return "\n".join([heading, *rows_of(merge_results.SUMMARY_HEADS, rows)])


RENDERERS = {
    "bench_gate": gate_results.in_short,
    "bench_order": ordering,
    "bench_serving": engine_results.serving,
    "bench_edge": edge,
    "bench_recovery": engine_results.recovering,
    "bench_soak": engine_results.soaking,
    "bench_swap": engine_results.swapping,
    "bench_placement": placement,
}


def measured() -> str:
    """All tables, in the order of the records' names."""
    parts = [BEGIN, merging_in_short([record for _, record in _read("bench_merge")])]
    for path, record in _read(""):
        if (render := RENDERERS.get(record["benchmark"])) is not None:
            parts += ["\n".join(render(record)), f"`{record['command']}` ({path.name})"]
    return "\n\n".join([*parts, END])


def fallbacks(record: Record, workload: str) -> Iterator[str]:
    """One row for each way of sharing, one column for each part of the models; what it saves beside it."""
    rows = record["workloads"][workload]
    found = {(layers, way): row for row in rows for layers, way in [row[:2]]}
    parts, ways = (list(dict.fromkeys(row[place] for row in rows)) for place in (0, 1))
    yield (
        f"**Ways of sharing what resists: {workload}**, {record['options']['steps']} steps each, from the originals; "
        "the worst query's agreement with its original on the gate, and the bytes saved:\n"
    )
    table = [(way, *(_fallback(found.get((part, way))) for part in parts)) for way in ways]
    yield from rows_of(("way", *parts), table)


def _fallback(row: Sequence[Any] | None) -> str:
    return "–" if row is None else f"{row[4]:.3f}, {row[2] / 1024:,.0f} KiB"


def merging_page() -> str:
    """Every cell of bench_merge, what bench_fallbacks compares, and what became of what the gate let pass."""
    parts = ["# Merging: every method on every workload", "Written by `python jobs/render_results.py`."]
    for path, record in _read("bench_merge"):
        commands = ", ".join(f"`{command}`" for command in merge_results.commands(record))
        parts += ["\n".join(merging(record)), f"{commands} ({path.name})"]
    for path, record in _read("bench_fallbacks"):
        parts += ["\n".join(fallbacks(record, workload)) for workload in record["workloads"]]
        parts.append(f"`{record['command']}` ({path.name})")
    for path, record in _read("bench_gate"):
        parts += ["\n".join(gate_results.promises(record)), f"`{record['command']}` ({path.name})"]
    return "\n\n".join(parts) + "\n"


def _read(benchmark: str) -> Iterator[tuple[Path, Record]]:
    """The records of one benchmark, or of all."""
    for path in sorted(records.RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if benchmark in ("", record["benchmark"]):
            yield path, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = {README: before + measured() + after, MERGING: merging_page()}
    if options.check:
        stale = [path.name for path, page in wanted.items() if page != path.read_text(encoding="utf-8")]
        sys.exit(f"{', '.join(stale)}: not what the records in jobs/results/ say; render again" if stale else 0)
    for path, page in wanted.items():
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

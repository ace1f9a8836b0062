"""What the records of benchmarks of the real engine and the real fleet say, as tables and sentences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tables import percent, rows_of

Record = Mapping[str, Any]


def serving(record: Record) -> Iterator[str]:
    """Medians over runs, of means over queries."""
    device = next(iter(record["profiles"].values()))[0]["device"]
    budget_mib = int(record["options"]["memory"]) / 2**20
    came = "evenly spread" if record["options"]["phases"] == "even" else "at phases drawn for each run"
    yield (
        f"**{record['workload']}**, the real engine on {device}, in {budget_mib:.0f} MiB, frames {came}, "
        f"{record['options']['runs']} runs:\n"
    )
    heads = ("what runs", "goodput", "worst query", "simulated", "error", "end-to-end accuracy", "loaded")
    yield from rows_of(heads, [_served(record, case) for case in dict.fromkeys(row["case"] for row in record["rows"])])


def _served(record: Record, case: str) -> tuple[str, ...]:
    rows = [row for row in record["rows"] if row["case"] == case]

    def median(value: Callable[[Any], float]) -> float:
        return statistics.median(map(value, rows))

    return (
        case,
        percent(median(lambda row: statistics.fmean(row["goodput"].values()))),
        percent(median(lambda row: min(row["goodput"].values()))),
        percent(median(lambda row: row["simulated_goodput"])),
        f"{median(_error_points):.1f} points",
        percent(median(lambda row: statistics.fmean(row["accuracy"].values()))),
        f"{median(lambda row: row['loaded_bytes']) / 2**20:,.0f} MiB",
    )


def _error_points(row: Record) -> float:
    """How far the simulator is from what was measured, in percentage points of goodput."""
    return 100 * abs(row["simulated_goodput"] - statistics.fmean(row["goodput"].values()))


def swapping(record: Record) -> Iterator[str]:
    """How fast weights arrive, whether just the missing ones do, and what computing layer by layer spares."""
    yield f"**Swapping** on {record['device']}; medians of neighbours' ratios:\n"
    yield from rows_of(("model", "weights", "arrive at", "of a plain copy"), [_copied(row) for row in record["copies"]])
    exact = sum(row["loaded_bytes"] == row["missing_bytes"] for row in record["cycles"])
    spared = "; ".join(f"{row['model']} {percent(_layered(row))}" for row in record["answers"])
    yield (
        f"\nBytes loaded are just those missing in {exact} of {len(record['cycles'])} cycles, merged and not, in four "
        f"budgets. An answer from nothing resident, layer by layer, against all weights awaited first: {spared}."
    )


def _copied(row: Record) -> tuple[str, ...]:
    rate = row["bytes"] / statistics.median(row["load_ms"]) / 1e6
    share = statistics.median(p / m for p, m in zip(row["plain_copy_ms"], row["load_ms"], strict=True))
    return row["model"], f"{row['bytes'] / row['copies'] / 1e6:.1f} MB", f"{rate:.1f} GB/s", percent(share)


def _layered(row: Record) -> float:
    return statistics.median(one / other for one, other in zip(row["layered_ms"], row["whole_ms"], strict=True))


def recovering(record: Record) -> Iterator[str]:
    """What was killed under load, and what callers saw of it."""
    yield "**A fleet of two edge nodes under constant load**, real raylets, real HTTP:\n"
    table = [
        (row["what"], *(str(row[kind]) for kind in ("fresh", "stale", "failed", "wrong")), _until_fresh(row))
        for row in record["incidents"]
    ]
    yield from rows_of(("what was done", "fresh", "stale", "failed", "wrong", "until all were fresh again"), table)


def soaking(record: Record) -> Iterator[str]:
    """Minutes on end of more than can be answered."""
    growth = percent(record["process_growth_fraction"])
    if "sent_fps" not in record:
        yield (
            f"**Soak of the engine**: {percent(record['answered_fraction'])} of {record['arrived']:,} frames answered; "
            f"in {len(record['samples']):,} looks the budget was exceeded {record['samples_above_budget']} times, "
            f"and the process grew by {growth}."
        )
        return
    came, latency = record["came_of_them"], record["latency_ms"]
    yield (
        f"**Soak through HTTP**, {len(record['minutes'])} minutes at {record['sent_fps']:.0f} frames a second, where "
        f"{record['sustainable_fps']:.0f} are sustained: {came['fresh']:,} answered, {came['stale']:,} called stale, "
        f"{came['not sent']:,} not sent, since the client had 256 requests open, "
        f"{came.get('failed', 0)} failed; {percent(record['within_slo_fraction'])} of the answers within "
        f"{record['slo_ms']:.0f} ms (p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms); the process grew by "
        f"{growth}."
    )


def _until_fresh(row: Record) -> str:
    return f"{row['last_not_fresh_s']:.1f} s" if "last_not_fresh_s" in row else "–"

"""The README's tables of measurements, from the records in jobs/results/.

python jobs/render_results.py           # writes them into README.md
python jobs/render_results.py --check   # exit code 1 when they are not what the records say
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import records

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- measured: begin (python jobs/render_results.py) -->", "<!-- measured: end -->"

Record = Mapping[str, Any]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def rows_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def serving(record: Record) -> Iterator[str]:
    """Medians over runs, of means over queries."""
    device = next(iter(record["profiles"].values()))["device"]
    budget_mib = int(record["options"]["memory"]) / 2**20
    yield (
        f"**{record['workload']}**, the real engine on {device}, in {budget_mib:.0f} MiB, "
        f"{record['options']['runs']} runs:\n"
    )
    heads = ("what runs", "goodput", "worst query", "simulated", "end-to-end accuracy", "loaded")
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
        percent(median(lambda row: statistics.fmean(row["accuracy"].values()))),
        f"{median(lambda row: row['loaded_bytes']) / 2**20:,.0f} MiB",
    )


def searching(record: Record) -> Iterator[str]:
    """What each search had saved after so much processor time."""
    minutes = float(record["options"]["minutes"])
    marks = [minutes * part for part in (0.25, 0.5, 0.75, 1)]
    yield (
        f"**{record['workload']}**, one thread, `--gate-margin {record['options']['gate_margin']}`; sharing across "
        f"models could save at most {percent(record['cross_model_bound_fraction'])}:\n"
    )
    names = {"ours": "ours", "ours-across": "ours, across models only (`--paper`)", "gemel": "GEMEL's greedy search"}
    table = [
        (names[method], *(percent(_saved(rows, 60 * mark)) for mark in marks), str(len(rows)))
        for method, rows in record["methods"].items()
    ]
    yield from rows_of(("bytes saved after", *(f"{mark:g} CPU min" for mark in marks), "trials"), table)


def _saved(rows: Sequence[Record], cpu_seconds: float) -> float:
    return max((row["saved_fraction"] for row in rows if row["cpu_seconds"] <= cpu_seconds), default=0.0)


def edge(record: Record) -> Iterator[str]:
    """Geometric means of mean goodput against time/space sharing, over the workloads where that loses frames."""
    yield (
        f"**{len(record['workloads'])} generated workloads** of full-size torchvision models, simulated on an "
        f"estimated {record['options']['device']}, {100 * float(record['options']['merged_fraction']):.0f} % of the "
        "shareable bytes merged; goodput against time/space sharing where that answers less than 99 % of frames "
        "(geometric mean, number of workloads):\n"
    )
    policies = [name for name in record["options"]["policies"] if name != "time_space"]
    levels = sorted({row["level"] for row in record["workloads"][0]["rows"]})
    table = [(f"{level:.0%}", *(_ratio(record, level, policy) for policy in policies)) for level in levels]
    yield from rows_of(("memory above one model", *policies), table)


def _ratio(record: Record, level: float, policy: str) -> str:
    found = []
    for workload in record["workloads"]:
        mean = {row["policy"]: row["mean_goodput"] for row in workload["rows"] if row["level"] == level}
        if 0 < mean["time_space"] < 0.99 and mean[policy] > 0:
            found.append(mean[policy] / mean["time_space"])
    return f"{statistics.geometric_mean(found):.2f} x ({len(found)})" if found else "-"


RENDERERS = {"bench_serving": serving, "bench_search": searching, "bench_edge": edge}


def measured() -> str:
    """All tables, in the order of the records' names."""
    parts = [BEGIN]
    for path in sorted(records.RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if (render := RENDERERS.get(record["benchmark"])) is not None:
            parts += ["\n".join(render(record)), f"`{record['command']}` ({path.name})"]
    return "\n\n".join([*parts, END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + measured() + after
    if options.check:
        sys.exit(0 if wanted == text else "README.md: its tables are not what jobs/results/ says; render them again")
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Reading the records of bench_merge: what each method saved, at what accuracy, after how much work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Record = Mapping[str, Any]

NAMES = {
    "ours": "ours",
    "ours-no-slices": "ours, without slices (`--no-slices`)",
    "ours-paper-rule": "ours, across models only (`--paper`)",
    "greedy": "GEMEL's search (SGD .01)",
    "greedy-authors-rate": "GEMEL's search, its authors' rate (SGD 1e-5)",
    "greedy-our-recipe": "GEMEL's order, our retraining",
    "averaged": "everything across models, no retraining",
    "stem": "longest stem, no retraining",
    "dedup": "bit-identical tensors",
    "bf16": "originals in bf16",
    "ours, bf16": "ours, then in bf16",
    "distilled": "each distilled into a quarter-width ResNet18",
}


def table(record: Record) -> Iterator[tuple[str, ...]]:
    """One row for each method and target: saved, worst gate agreement and bound, trials, steps, CPU minutes."""
    for target in sorted({cell["target"] for cell in record["cells"]}):
        for cell in record["cells"]:
            if cell["target"] == target:
                yield from _rows(record, cell)


HEADS = (
    "target", "method", "bytes saved", "of the bound", "worst accuracy", "its bound", "trials", "steps",
    "steps to GEMEL's saving", "CPU min",
)  # fmt: skip


def _rows(record: Record, cell: Record) -> Iterator[tuple[str, ...]]:
    rows, searched = cell["rows"], _searched(cell)
    if searched:
        yield _row(record, cell, cell["method"], searched)
    if len(searched) < len(rows):
        yield _row(record, cell, "ours, bf16", rows[-1:])


def _row(record: Record, cell: Record, method: str, rows: list[Record]) -> tuple[str, ...]:
    last = rows[-1]
    trials = [row for row in rows if row["steps"]]
    worst = min(last["gates"].values(), default=(1.0, 1.0))
    return (
        f"{cell['target']:g}",
        NAMES[method] + _time_up(cell),
        f"{100 * last['saved_fraction']:.1f} %",
        f"{100 * last['saved_fraction'] / record['cross_model_bound_fraction']:.0f} %",
        f"{worst[0]:.3f}",
        f"{worst[1]:.3f}",
        str(len(trials)),
        str(sum(row["steps"] for row in trials)),
        _steps_to(_saved_by_gemel(record, cell["target"]), rows),
        f"{rows[-1]['cpu_seconds'] / 60:.1f}",
    )


SUMMARY_HEADS = (
    "workload", "target", "bound across models", "with repeats", "with slices", "ours", "worst accuracy (its bound)",
    "steps", "GEMEL's", "steps", "ours to that", "CPU min (ours / GEMEL's)",
)  # fmt: skip


def summary(record: Record) -> Iterator[tuple[str, ...]]:
    """One row for each target: ours (without slices where no more was run) and GEMEL's."""
    for target in sorted({cell["target"] for cell in record["cells"]}):
        cells = {cell["method"]: cell for cell in record["cells"] if cell["target"] == target and cell["rows"]}
        method = next((method for method in ("ours", "ours-no-slices") if method in cells), None)
        if method is not None:
            ours = _row(record, cells[method], method, _searched(cells[method]))
            theirs = _row(record, cells["greedy"], "greedy", _searched(cells["greedy"])) if "greedy" in cells else None
            judge = record["options"].get("judged_by", "agreement")
            yield (
                record["workload"] + ("" if judge == "labels" else ", agreement"),
                ours[0],
                f"{100 * record['cross_model_bound_fraction']:.1f} %",
                f"{100 * record['repeats_bound_fraction']:.1f} %",
                _slices_bound(record),
                f"**{ours[2]}**" + _time_up(cells[method]) + (", without slices" if method != "ours" else ""),
                f"{ours[4]} ({ours[5]})",
                ours[7],
                *(("–",) * 3 if theirs is None else (theirs[2] + _time_up(cells["greedy"]), theirs[7], ours[8])),
                f"{ours[9]} / {theirs[9] if theirs else '–'}",
            )


def _searched(cell: Record) -> list[Record]:
    return [row for row in cell["rows"] if row["label"] != "merged, in bf16"]


def _time_up(cell: Record) -> str:
    return "" if cell["finished"] else ", time up"


def _saved_by_gemel(record: Record, target: float) -> float:
    """What GEMEL's search saved in the end at a target; infinite where it was not run."""
    found = [c["rows"] for c in record["cells"] if c["target"] == target and c["method"] == "greedy" and c["rows"]]
    return float(found[0][-1]["saved_fraction"]) if found else math.inf


def _steps_to(saved_fraction: float, rows: list[Record]) -> str:
    """Retraining steps of all trials until so much was saved."""
    taken = 0
    for row in rows:
        taken += row["steps"]
        if row["saved_fraction"] >= saved_fraction:
            return str(taken)
    return ""


def heading(record: Record) -> str:
    """What the table is of."""
    judge = record["options"].get("judged_by", "agreement")
    against = "accuracy on labels relative to the original's" if judge == "labels" else "agreement with the original"
    usual = float(record["options"]["minutes"])
    each_minutes = sorted({cell.get("minutes", usual) for cell in record["cells"]})
    minutes = " or ".join(f"{each:g}" for each in each_minutes)
    speeds = ", on processors that were not equally fast (steps compare, minutes hardly)" * (len(each_minutes) > 1)
    return (
        f"**{record['workload']}**, {against}, one thread, at most {minutes} CPU minutes a cell{speeds}, "
        f"`--gate-margin {record['options']['gate_margin']}`; sharing across models could save at most "
        f"{100 * record['cross_model_bound_fraction']:.1f} %, with repeats within models "
        f"{100 * record['repeats_bound_fraction']:.1f} %, with slices {_slices_bound(record)}:\n"
    )


def commands(record: Record) -> list[str]:
    """That of the record, and those of cells that were run by others, later."""
    return list(dict.fromkeys([record["command"], *(c["command"] for c in record["cells"] if "command" in c)]))


def _slices_bound(record: Record) -> str:
    """Earlier records knew of none."""
    return f"{100 * record['slices_bound_fraction']:.1f} %" if "slices_bound_fraction" in record else "–"

"""Reading the records of bench_edge: ratios between policies, by workload and memory level."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

QUERY_COLUMNS = ["name", "architecture", "classes", "fps", "slo_ms", "model"]
COLUMNS = [
    "level", "policy", "mean_goodput", "worst_goodput", "budget_bytes", "weights_bytes", "swap_bytes",
    "busy_fraction", "cpu_s",
]  # fmt: skip
# Less of the base policy's goodput counts as behind it.
BEHIND = 0.999
# A policy that answers more than this leaves nothing to win.
CONTESTED_BELOW = 0.99


def levels_of(record: Record) -> list[float]:
    """Memory levels, ascending."""
    return sorted({row[0] for row in record["workloads"][0]["rows"]})


def goodputs(workload: Record, level: float, column: str = "mean_goodput") -> dict[str, float]:
    """By policy, of one workload at one memory level."""
    place = COLUMNS.index(column)
    return {row[1]: row[place] for row in workload["rows"] if row[0] == level}


def ratios(
    record: Record, level: float, policy: str, base: str, *, contested: bool = False, families: bool = False
) -> list[float]:
    """Mean goodput of a policy by that of the base, for each workload where both answer anything at all.

    `contested`: only workloads where the base loses frames; `families`: only those of one architecture.
    """
    found = []
    for workload in record["workloads"]:
        mean = goodputs(workload, level)
        if (families and not workload["is_family"]) or (contested and mean[base] >= CONTESTED_BELOW):
            continue
        if mean[policy] > 0 and mean[base] > 0:
            found.append(mean[policy] / mean[base])
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """NaN for no values."""
    return statistics.geometric_mean(values) if values else math.nan


def mean_goodput(record: Record, level: float, policy: str, column: str = "mean_goodput") -> float:
    """Over all workloads."""
    return statistics.fmean(goodputs(workload, level, column)[policy] for workload in record["workloads"])


def behind(record: Record, level: float, policy: str, base: str) -> int:
    """How many workloads a policy loses to the base."""
    return sum(ratio < BEHIND for ratio in ratios(record, level, policy, base))


def table(record: Record, base: str) -> Iterator[str]:
    """Goodput (mean over queries, then workloads) and its ratio to the base policy's, as a geometric mean."""
    yield f"goodput, ratios to {base}; 'contested': where that answers less than {CONTESTED_BELOW:.0%}"
    heads = f"{'mean':>6} {'worst':>6} {'ratio':>6} {'contested':>14} {'least':>6} {'behind':>7}"
    yield f"{'memory':>7} {'policy':<20} {heads}"
    for level in levels_of(record):
        for policy in record["policies"]:
            every = ratios(record, level, policy, base)
            hard = ratios(record, level, policy, base, contested=True)
            yield (
                f"{level:>7.0%} {policy:<20} {mean_goodput(record, level, policy):>6.3f} "
                f"{mean_goodput(record, level, policy, 'worst_goodput'):>6.3f} {geometric_mean(every):>6.2f} "
                f"{geometric_mean(hard):>6.2f} of {len(hard):>4} {min(every, default=math.nan):>6.3f} "
                f"{behind(record, level, policy, base):>4}/{len(every)}"
            )

"""Plots of a bench_edge record, light and dark, legible in print and without colour vision.

python jobs/plot_edge.py jobs/results/bench_edge_study_t4-simulated_DATE.json

Colours are Okabe and Ito's (2008), lighter ones on dark ground; every line has a marker and a dash of its own besides.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edge_results
import matplotlib as mpl
from edge_results import Record

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


@dataclass(frozen=True)
class Line:
    """How one policy is drawn on light and on dark ground."""

    label: str
    light: str
    dark: str
    marker: str
    dashes: str


LINES = {
    "everything_resident": Line("everything resident", "#555555", "#bbbbbb", "None", ":"),
    "ours_merged": Line("ours, merged", "#0072b2", "#56b4e9", "o", "-"),
    "time_space_merged": Line("time/space, merged", "#cc79a7", "#e6a5cb", "s", "--"),
    "ours": Line("ours, originals", "#007a5a", "#2ec4a0", "^", "-"),
    "time_space": Line("time/space, originals", "#d55e00", "#ff8c42", "D", "--"),
    "model_lru": Line("model LRU, originals", "#8a6500", "#f0c75e", "v", "-."),
}
GROUNDS = {"light": ("#ffffff", "#1a1a1a", "#dddddd"), "dark": ("#15181c", "#eeeeee", "#3a3f46")}
# Ends of lines closer together than this share of the axis would have labels on top of each other.
LABEL_GAP = 0.055


def draw(record: Record, stem: Path) -> Iterator[Path]:
    """Write STEM_goodput_GROUND.png and STEM_ratios_GROUND.png."""
    for ground, (background, ink, grid) in GROUNDS.items():
        style: dict[str, Any] = {
            "figure.facecolor": background, "axes.facecolor": background, "savefig.facecolor": background,
            "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink,
            "grid.color": grid, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False,
        }  # fmt: skip
        for name, plot in (("goodput", plot_goodput), ("ratios", plot_ratios)):
            with plt.rc_context(style):
                figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
                plot(axes, record, ground)
                path = stem.parent / f"{stem.name}_{name}_{ground}.png"
                figure.savefig(path, dpi=160)
                plt.close(figure)
            yield path


def plot_goodput(axes: Axes, record: Record, ground: str) -> None:
    """Mean goodput by memory level, one line a policy, named at its end."""
    levels = edge_results.levels_of(record)
    ends = {}
    for policy, line in drawn(record).items():
        values = [100 * edge_results.mean_goodput(record, level, policy) for level in levels]
        colour = getattr(line, ground)
        axes.plot(
            [100 * level for level in levels], values,
            color=colour, marker=line.marker, linestyle=line.dashes, linewidth=2, markersize=7,
        )  # fmt: skip
        ends[line.label] = (values[-1], colour)
    label_ends(axes, ends, 100 * levels[-1])
    axes.set_xlabel("memory, % of the way from the largest model alone to all of them")
    axes.set_ylabel("frames answered in time, %")
    axes.set_xticks([100 * level for level in levels])
    axes.set_title(f"Goodput, mean over {len(record['workloads'])} generated workloads", loc="left")
    axes.grid(axis="y")


def label_ends(axes: Axes, ends: dict[str, tuple[float, str]], right: float) -> None:
    """Names beside the lines' ends, pushed apart downwards where they would lie on each other."""
    low, high = axes.get_ylim()
    ceiling = high
    for label, (value, colour) in sorted(ends.items(), key=lambda end: -end[1][0]):
        at = min(value, ceiling)
        ceiling = at - LABEL_GAP * (high - low)
        axes.annotate(label, (right, at), (10, 0), "data", "offset points", color=colour, va="center")


def plot_ratios(axes: Axes, record: Record, ground: str) -> None:
    """Each workload's goodput by that of time/space sharing at the tightest memory, sorted."""
    level = edge_results.levels_of(record)[0]
    for policy in ("ours_merged", "ours"):
        if policy not in record["policies"]:
            continue
        line = LINES[policy]
        found = sorted(edge_results.ratios(record, level, policy, "time_space"))
        shares = [100 * place / max(len(found) - 1, 1) for place in range(len(found))]
        axes.plot(
            shares, found, color=getattr(line, ground), linestyle=line.dashes, linewidth=2, marker=line.marker,
            markersize=4, label=f"{line.label} ({edge_results.geometric_mean(found):.2f} x on geometric average)",
        )  # fmt: skip
    axes.axhline(
        1, color=getattr(LINES["time_space"], ground), linestyle="--", linewidth=1.5, label="time/space sharing"
    )
    axes.set_yscale("log")
    ticks = [1, 1.5, 2, 3, 5, 10]
    axes.set_yticks(ticks, [f"{tick:g} x" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("workloads, % (each curve sorted)")
    axes.set_ylabel("goodput, times that of time/space sharing")
    axes.set_title("Memory for just the largest model", loc="left")
    axes.legend(frameon=False, loc="upper left")
    axes.grid(axis="y")


def drawn(record: Record) -> dict[str, Line]:
    """The policies of this record that have a line."""
    return {policy: line for policy, line in LINES.items() if policy in record["policies"]}


def main() -> None:
    path = Path(sys.argv[1])
    for found in draw(json.loads(path.read_text(encoding="utf-8")), path.with_suffix("")):
        print(found)


if __name__ == "__main__":
    main()

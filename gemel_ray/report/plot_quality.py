"""Plots of what a release is worth: accuracies, operating points, goodput and accuracy against memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from gemel_ray.report.facts import Facts, OperatingPoint, pareto
from gemel_ray.report.inks import Ground, Sheet, plain
from gemel_ray.spec.units import MIB

# Each policy's words, colour by place among the hues (None: grey), marker and dashes; others are drawn plainly.
_POLICIES: Mapping[str, tuple[str, int | None, str, str]] = {
    "everything_resident": ("everything resident", None, "None", ":"),
    "ours_merged": ("ours, merged", 0, "o", "-"),
    "ours_released": ("ours, as released", 4, "P", "-"),
    "time_space_merged": ("time/space, merged", 3, "s", "--"),
    "ours": ("ours, originals", 2, "^", "-"),
    "dedup": ("deduplication", 2, "x", ":"),
    "stem": ("stems", 5, "d", "-."),
    "time_space": ("time/space, originals", 1, "D", "--"),
    "model_lru": ("model LRU, originals", 5, "v", "--"),
}


def accuracies_height(facts: Facts, sheet: Sheet) -> float:
    """In inches."""
    return 1.3 + 0.34 * len(facts.accuracies)


def draw_accuracies(figure: Figure, facts: Facts, sheet: Sheet) -> None:
    """Each merged query's agreement on the gate, down to its lower bound, against its target."""
    axes, ground, found = figure.subplots(), sheet.ground, facts.accuracies
    for row, accuracy in enumerate(found.values()):
        reaches, (estimate, bound) = accuracy.meets_target, accuracy.held
        colour = ground.blue if reaches else ground.orange
        axes.plot([100 * bound, 100 * estimate], [row, row], color=colour, linewidth=2.4)
        axes.plot(100 * bound, row, "|", color=colour, markersize=10, markeredgewidth=2)
        axes.plot(100 * estimate, row, "o" if reaches else "X", color=colour, markersize=7.5)
        axes.plot([100 * accuracy.target] * 2, [row - 0.38, row + 0.38], color=ground.ink, linewidth=1.8)
    lowest = min(min(each.held[1], each.target) for each in found.values())
    axes.set(ylim=(len(found) - 0.4, -0.6), xlim=(max(100 * lowest - 2, -1), 100.5))
    axes.set_yticks(range(len(found)), [sheet.shortened(name) for name in found])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("agreement with the original, %" if sheet.is_narrow else _MEASURE)
    axes.grid(axis="x")
    _explain_accuracies(figure, sheet)


_MEASURE = "agreement with the original on frames that neither training nor choosing has seen, %"


def _explain_accuracies(figure: Figure, sheet: Sheet) -> None:
    ground = sheet.ground
    figure.legend(
        handles=[
            Line2D([], [], color=ground.blue, marker="o", linewidth=2.4, label="agreement, and its lower bound"),
            Line2D([], [], color=ground.orange, marker="X", linewidth=2.4, label="below target"),
            Line2D([], [], color=ground.ink, marker="|", markersize=11, markeredgewidth=1.8, linewidth=0,
                   label="target"),
        ],
        loc="outside upper left", ncols=1 if sheet.is_narrow else 3, fontsize="small",
    )  # fmt: skip


def draw_points(figure: Figure, facts: Facts, sheet: Sheet) -> None:
    """One point for each search: bytes saved against the worst query's agreement; those on the front are joined."""
    axes, ground, front = figure.subplots(), sheet.ground, pareto(facts.points)
    axes.plot(*_xy(front), color=ground.blue, linewidth=1.8, zorder=2)
    for point in facts.points:
        is_front = point in front
        x, y = 100 * point.worst_agreement, 100 * point.saved_fraction
        axes.plot([100 * point.worst_lower_bound, x], [y, y], color=ground.soft, linewidth=1.2, zorder=1)
        axes.plot(
            x, y, "o", markersize=8, markerfacecolor=ground.blue if is_front else "none",
            markeredgecolor=ground.blue if is_front else ground.soft, markeredgewidth=1.6, zorder=3,
        )  # fmt: skip
        words = axes.annotate(_point_words(point), (x, y), (0, 9), textcoords="offset points", ha="center")
        words.set(fontsize="small", path_effects=[withStroke(linewidth=3, foreground=ground.paper)])
    lows = [100 * point.worst_lower_bound for point in facts.points]
    saved = [100 * point.saved_fraction for point in facts.points]
    axes.set_xlim(min(lows) - 2, 101.5)
    axes.set_ylim(max(min(saved) - 12, 0), max(saved) + 14)
    axes.set_xlabel("worst query's agreement" + ("" if sheet.is_narrow else ", and its lower bound") + ", %")
    axes.set_ylabel("bytes saved, %")
    axes.grid()


def _point_words(point: OperatingPoint) -> str:
    return f"target {100 * point.target:g} %"


def _xy(points: Sequence[OperatingPoint]) -> tuple[list[float], list[float]]:
    return [100 * point.worst_agreement for point in points], [100 * point.saved_fraction for point in points]


def has_accuracy(facts: Facts) -> bool:
    """Whether recorded answers were played, so that rows tell what a user would have seen."""
    return any("mean_accuracy" in row for row in facts.simulations)


def policies_height(facts: Facts, sheet: Sheet) -> float:
    """In inches: one panel, or two where accuracy is known; they stand below each other on a phone."""
    policies = len({row["policy"] for row in facts.simulations})
    panels = 2 if has_accuracy(facts) and sheet.is_narrow else 1
    return 3.1 * panels + (0.22 * ((policies + 1) // 2) if sheet.is_narrow else 0.22 * ((policies + 3) // 4) + 0.8)


def draw_policies(figure: Figure, facts: Facts, sheet: Sheet) -> None:
    """Goodput, and where answers were recorded end-to-end accuracy, against memory: one line for each policy."""
    measures = [("mean_goodput_fraction", "frames answered in time, %")]
    if has_accuracy(facts):
        measures.append(("mean_accuracy", "end-to-end accuracy, %"))
    shape = (len(measures), 1) if sheet.is_narrow else (1, len(measures))
    panels = figure.subplots(*shape, squeeze=False).ravel()
    for axes, (measure, words) in zip(panels, measures, strict=True):
        _draw_measure(axes, facts.simulations, measure, sheet.ground)
        axes.set(ylabel=words, xlabel="memory, MiB")
        axes.set_ylim(max(min(axes.get_ylim()[0] - 3, 80), -3), 103)
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
        axes.grid(axis="y")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=1 if sheet.is_narrow else 4, fontsize="small", handlelength=3,
    )  # fmt: skip


def _draw_measure(axes: Axes, rows: Sequence[Mapping[str, Any]], measure: str, ground: Ground) -> None:
    values: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        values[row["policy"]] += [(row["budget_bytes"] / MIB, 100 * row[measure])] if measure in row else []
    for place, policy in enumerate(sorted(values, key=lambda name: [*_POLICIES, name].index(name))):
        label, hue, marker, dashes = _POLICIES.get(policy, (plain(policy), None, ".", "-"))
        points = sorted(values[policy])
        # Lines that lie on each other are all to be seen: the later, the thinner.
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=ground.plain if hue is None else ground.hues[hue],
            marker=marker, linestyle=dashes, markersize=9 - 0.6 * place, linewidth=4.2 - 0.35 * place,
            label=label if points else f"{label} (does not fit)",
        )  # fmt: skip

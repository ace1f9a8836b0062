"""What a report is made of, in order. To add a plot: a function that draws it, and an entry here (see README.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from gemel_ray.report import plot_picture, plot_quality, plot_search, tables
from gemel_ray.report.facts import Facts
from gemel_ray.report.inks import Sheet
from gemel_ray.report.tables import Table, percent
from gemel_ray.spec.units import format_bytes


@dataclass(frozen=True, slots=True)
class Plot:
    """How one plot is drawn; sizes in inches, the sheet's own width unless another is given."""

    draw: Callable[[Figure, Facts, Sheet], None]
    height: Callable[[Facts, Sheet], float]
    width: Callable[[Facts, Sheet], float] = lambda facts, sheet: sheet.width


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, what the plot says in words (read aloud in its stead), the plot, its numbers."""

    name: str
    title: str
    told: Callable[[Facts], str]
    is_there: Callable[[Facts], bool]
    plot: Plot | None = None
    table: Callable[[Facts], Table] | None = None


def _high(wide: float, narrow: float) -> Callable[[Facts, Sheet], float]:
    return lambda facts, sheet: narrow if sheet.is_narrow else wide


def _picture_told(facts: Facts) -> str:
    if not facts.picture.shares:
        return "No layer is shared: every model has weights of its own."
    members = sum(len(layer.members) for layer in facts.picture.shares)
    return (
        f"Every column is a model, its layers from input (top) to output, as high as their bytes. {members} layers use "
        f"{len(facts.picture.shares)} shared copies: ties join those that use one copy, the copy counts where its "
        "colour is full, and costs nothing where it is pale. The six that save most have a colour and a number each."
    )


def _savings_told(facts: Facts) -> str:
    told = f"Release {facts.manifest.release} saves {percent(facts.saved_fraction)} of all bytes"
    if facts.bounds is None:
        return told + "."
    across, widest = (facts.share(bound) for bound in (facts.bounds.across_bytes, facts.bounds.widest_bytes))
    return (
        f"{told}. Sharing across models, which GEMEL does, ends at {percent(across)}; with repeats within models, and "
        f"smaller layers as slices of larger ones, it ends at {percent(widest)}."
    )


def _accuracies_told(facts: Facts) -> str:
    reached = sum(found.meets_target for found in facts.accuracies.values())
    return (
        f"{reached} of {len(facts.accuracies)} merged queries reach their target. A bar reaches down from the "
        "agreement with the original to its lower confidence bound; the upright stroke is the target."
    )


def _trials_told(facts: Facts) -> str:
    passed = sum(trial.passed for trial in facts.trials)
    shown = plot_search.MOST_TRIALS
    cut = f" The first {shown} are drawn." if len(facts.trials) > shown else ""
    return f"{passed} of {len(facts.trials)} trials passed. Probes train nothing; superseded ones were spared.{cut}"


def _prediction_told(facts: Facts) -> str:
    told = facts.prediction.told() if facts.prediction else ""
    return f"{told[:1].upper()}{told[1:]}."


def _policies_told(facts: Facts) -> str:
    row = facts.simulations[0]
    how = "estimated from published rates" if row.get("estimated") else "measured"
    accuracy = (
        "; accuracy end to end counts a dropped frame's last answer again" if plot_quality.has_accuracy(facts) else ""
    )
    return (
        f"This release's cameras on a simulated {row['device']} ({how} profile), under each policy and memory. "
        f"Goodput: frames answered within their SLO ÷ frames arrived, mean over queries{accuracy}."
    )


def _reproduce_told(facts: Facts) -> str:
    size = format_bytes(facts.manifest.bytes_after)
    return f"Release {facts.manifest.release} ({size}) was made with {tables.versions(facts)}."


SECTIONS: tuple[Section, ...] = (
    Section(
        "shared", "What is shared", _picture_told, lambda facts: bool(facts.picture.columns),
        Plot(plot_picture.draw_picture, plot_picture.picture_height, plot_picture.picture_width), tables.shared_table,
    ),
    Section(
        "savings", "Savings over the search’s time", _savings_told, lambda facts: True,
        Plot(plot_search.draw_savings, _high(4.2, 4.0)), tables.savings_table,
    ),
    Section(
        "accuracies", "Accuracies against targets", _accuracies_told, lambda facts: bool(facts.accuracies),
        Plot(plot_quality.draw_accuracies, plot_quality.accuracies_height), tables.accuracies_table,
    ),
    Section(
        "points", "Operating points", lambda facts: "One point for each search in this store: the line joins those "
        "that no other beats in both. A lower target saves more; choose the point that the question can bear.",
        lambda facts: len(facts.points) > 1, Plot(plot_quality.draw_points, _high(4.4, 3.8)), tables.points_table,
    ),
    Section(
        "policies", "Goodput against memory", _policies_told, lambda facts: bool(facts.simulations),
        Plot(plot_quality.draw_policies, plot_quality.policies_height), tables.simulations_table,
    ),
    Section(
        "trials", "Trials", _trials_told, lambda facts: bool(facts.trials),
        Plot(plot_search.draw_timeline, plot_search.timeline_height), tables.trials_table,
    ),
    Section(
        "prediction", "How well the search predicted", _prediction_told, lambda facts: facts.prediction is not None,
        Plot(plot_search.draw_prediction, _high(1.6, 2.2)), tables.prediction_table,
    ),
    Section("reproduce", "How to reproduce", _reproduce_told, lambda facts: True, None, tables.provenance_table),
)  # fmt: skip


def present(facts: Facts) -> tuple[Section, ...]:
    """The sections for which there is something to tell."""
    return tuple(section for section in SECTIONS if section.is_there(facts))

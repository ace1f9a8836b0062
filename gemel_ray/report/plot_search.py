"""Plots of a search: savings over its time, its trials, how well it predicted."""

from __future__ import annotations

from datetime import datetime, timedelta

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gemel_ray.report.facts import Facts, Trial
from gemel_ray.report.inks import Ground, Sheet, plain
from gemel_ray.spec.units import format_bytes

# Rows of the timeline that a page can bear; the table beside it has them all.
MOST_TRIALS = 60


def time_unit(span_s: float) -> tuple[float, str]:
    """How many seconds one unit of an axis is, and its name."""
    for seconds, name in ((3600.0, "hours"), (60.0, "minutes")):
        if span_s >= 2 * seconds:
            return seconds, name
    return 1.0, "seconds"


def draw_savings(figure: Figure, facts: Facts, sheet: Sheet) -> None:
    """Bytes saved by each release in time, and both bounds as lines."""
    axes, ground = figure.subplots(), sheet.ground
    known = [(saving.after_s, saving) for saving in facts.savings if saving.after_s is not None]
    end_s = max([*(after_s for after_s, _ in known), _last_trial_s(facts), 1.0])
    unit_s, unit = time_unit(end_s)
    times, values = [at / unit_s for at, _ in known], [100 * saving.saved_fraction for _, saving in known]
    axes.step([*times, end_s * 1.04 / unit_s], [*values, values[-1]], where="post", color=ground.blue, linewidth=2.2)
    axes.plot(times, values, "o", color=ground.blue, markersize=6)
    for at, value, (_, saving) in list(zip(times, values, known, strict=True))[1:]:
        is_late = at > end_s / unit_s / 2
        axes.annotate(
            f"release {saving.release}: {value:.1f} %", (at, value), (-8 if is_late else 8, -14),
            textcoords="offset points", ha="right" if is_late else "left", color=ground.ink,
        )  # fmt: skip
    _draw_bounds(axes, facts, ground)
    axes.set(ylim=(0, 109), xlabel=f"{unit} since the originals were published", ylabel="bytes saved, %")
    axes.set_xlim(0, end_s * 1.04 / unit_s)
    axes.grid(axis="y")


def _draw_bounds(axes: Axes, facts: Facts, ground: Ground) -> None:
    """The upper line's name stands above it and to the left, the lower's below it, so that they never meet."""
    if facts.bounds is None:
        return
    lines = (
        (facts.bounds.widest_bytes, "bound with repeats and slices", "-.", (2, 4), "bottom"),
        (facts.bounds.across_bytes, "bound across models", "--", (2, -4), "top"),
    )
    for count_bytes, name, dashes, offset, side in lines:
        value = 100 * facts.share(count_bytes)
        axes.axhline(value, color=ground.orange, linestyle=dashes, linewidth=1.4)
        axes.annotate(
            f"{name}: {value:.1f} %", (0, value), offset, xycoords=("axes fraction", "data"),
            textcoords="offset points", va=side, fontsize="small", color=ground.ink,
        )  # fmt: skip


def _last_trial_s(facts: Facts) -> float:
    ended = [trial.ended_at for trial in facts.trials if trial.ended_at is not None]
    if ended and facts.started_at is not None:
        return (max(ended) - facts.started_at).total_seconds()
    return 0.0 if len(facts.savings) > 1 else sum(trial.seconds for trial in facts.trials)


def spans(facts: Facts) -> list[tuple[float, float]]:
    """When each trial began and how long it took, in seconds; end to end where the search did not say when."""
    if facts.started_at is not None and all(trial.ended_at for trial in facts.trials):
        start = facts.started_at
        return [(_began(trial, start), trial.seconds) for trial in facts.trials]
    found, after_s = [], 0.0
    for trial in facts.trials:
        found.append((after_s, trial.seconds))
        after_s += trial.seconds
    return found


def _began(trial: Trial, start: datetime) -> float:
    assert trial.ended_at is not None, "the caller has looked"
    return max((trial.ended_at - timedelta(seconds=trial.seconds) - start).total_seconds(), 0.0)


def timeline_height(facts: Facts, sheet: Sheet) -> float:
    """In inches."""
    return 1.1 + 0.42 * min(len(facts.trials), MOST_TRIALS)


def draw_timeline(figure: Figure, facts: Facts, sheet: Sheet) -> None:
    """One row for each trial: its label above its bar, the outcome by colour, hatch and words."""
    axes, ground = figure.subplots(), sheet.ground
    shown = list(zip(facts.trials, spans(facts), strict=True))[:MOST_TRIALS]
    end_s = max([began + took for _, (began, took) in shown] + [1.0])
    unit_s, unit = time_unit(end_s)
    for row, (trial, (began_s, took_s)) in enumerate(shown):
        colour, hatch = _look(trial.kind, ground)
        width = max(took_s, end_s / 400) / unit_s
        axes.barh(
            row + 0.2, width, 0.36, began_s / unit_s, facecolor=colour, edgecolor=ground.paper, hatch=hatch, linewidth=0
        )
        words = _words(trial, sheet)
        axes.text(0, row - 0.2, words, va="center", fontsize="small", color=ground.ink)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, end_s * 1.02 / unit_s))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    is_timed = all(trial.ended_at for trial in facts.trials)
    axes.set_xlabel(f"{unit} since the originals were published" if is_timed else f"{unit} of trials, end to end")
    kinds = {trial.kind: _look(trial.kind, ground) for trial, _ in shown}
    figure.legend(
        handles=[Patch(facecolor=c, hatch=h, edgecolor=ground.paper, label=k) for k, (c, h) in kinds.items()],
        loc="outside upper left", ncols=2 if sheet.is_narrow else 4, fontsize="small",
    )  # fmt: skip


def _look(kind: str, ground: Ground) -> tuple[str, str]:
    looks = {
        "passed": (ground.blue, ""),
        "missed": (ground.orange, "////"),
        "superseded": (ground.plain, ".."),
        "failed": (ground.purple, "xxxx"),
    }
    return looks[kind]


def _words(trial: Trial, sheet: Sheet) -> str:
    saved = f"saves {format_bytes(trial.saved_bytes)}"
    if sheet.is_narrow:
        label = trial.label.replace(" layer groups of", " groups,").replace(" queries", "")
        return plain(f"{label[:30]} · {trial.kind}, {saved}")
    return plain(f"{trial.label[:70]} · {trial.reason[:50]}, would save {format_bytes(trial.saved_bytes)}"
                 if not trial.passed else f"{trial.label[:70]} · passed, {saved}")  # fmt: skip


def draw_prediction(figure: Figure, facts: Facts, sheet: Sheet) -> None:
    """All that models could share with each other, as one bar: what was predicted, and what came of it."""
    axes, ground, found = figure.subplots(), sheet.ground, facts.prediction
    assert found is not None, "drawn only where there is one"
    surprises = found.accepted_bytes - found.kept_bytes
    parts = (
        (found.kept_bytes, "predicted, and shared", ground.blue, ""),
        (found.predicted_bytes - found.kept_bytes, "predicted, not shared", ground.orange, "////"),
        (surprises, "not predicted, and shared", ground.green, ".."),
        (found.possible_bytes - found.predicted_bytes - surprises, "neither", ground.private, ""),
    )
    after = 0.0
    for count_bytes, label, colour, hatch in parts:
        share = 100 * count_bytes / found.possible_bytes if found.possible_bytes else 0.0
        axes.barh(0, share, 0.5, after, facecolor=colour, hatch=hatch, edgecolor=ground.paper, linewidth=0,
                  label=f"{label}: {share:.1f} %")  # fmt: skip
        after += share
    axes.set(xlim=(0, 100), ylim=(-0.4, 0.4), xlabel="% of what models could share with each other")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=1 if sheet.is_narrow else 2, fontsize="small")

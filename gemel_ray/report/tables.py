"""The report's tables: the numbers beside each plot, as text."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from gemel_ray.report.facts import Facts
from gemel_ray.spec.merge import SharedLayer
from gemel_ray.spec.units import MIB, format_bytes, readable_time
from gemel_ray.spec.uris import shown_command

# Layers that a table names one by one.
_MOST_MEMBERS = 12


@dataclass(frozen=True, slots=True)
class Table:
    """Plain text, escaped where it is written. The first column names the row; `words` are columns that hold no
    numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})


def percent(fraction: float | None) -> str:
    """'97.1 %', or a dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def headlines(facts: Facts) -> list[tuple[str, str, str]]:
    """The page's first numbers: what, how much, and beside what it is to be seen."""
    before, after = format_bytes(facts.manifest.bytes_before), format_bytes(facts.manifest.bytes_after)
    found = [("bytes saved", percent(facts.saved_fraction), f"{after} instead of {before}")]
    if facts.bounds is not None and facts.bounds.widest_bytes:
        share = facts.saved_bytes / facts.bounds.widest_bytes
        found.append(
            ("of what could be saved", percent(share), f"bound {percent(facts.share(facts.bounds.widest_bytes))}")
        )
    if facts.accuracies:
        name, worst = min(facts.accuracies.items(), key=lambda item: item[1].held[0] - item[1].target)
        beside = f"{name}, target {percent(worst.target)}"
        found.append(("nearest to its target", percent(worst.held[0]), beside))
    found.append(("queries", str(len(facts.manifest.queries)), f"{len(facts.accuracies)} of them merged"))
    return found  # fmt: skip


def shared_table(facts: Facts) -> Table:
    """Every shared layer, those that save most first."""
    rows = [
        (
            str(place),
            _members_told(layer),
            format_bytes(layer.layer_bytes),
            _used_by(layer),
            str(layer.rank or "–"),
            format_bytes(layer.saved_bytes),
        )
        for place, layer in enumerate(facts.picture.shares, start=1)
    ]
    columns = ("no.", "layers", "one copy", "used by", "rank of corrections", "saved")
    return Table(columns, tuple(rows), frozenset({0, 1}))


def _members_told(layer: SharedLayer) -> str:
    """All of them, or how many of each model where they are many; the page's facts have them all."""
    if len(layer.members) <= _MOST_MEMBERS:
        return ", ".join(map(str, layer.members))
    return ", ".join(f"{count} of {query}" for query, count in Counter(m.query for m in layer.members).items())


def _used_by(layer: SharedLayer) -> str:
    slices = sum(extent.bytes < layer.layer_bytes for extent in layer.extents)
    return f"{len(layer.members)}, {slices} as slices" if slices else str(len(layer.members))


def savings_table(facts: Facts) -> Table:
    """Every release from the originals on."""
    rows = [
        (
            str(saving.release),
            saving.label,
            "–" if saving.after_s is None else duration(saving.after_s),
            format_bytes(saving.saved_bytes),
            percent(saving.saved_fraction),
        )
        for saving in facts.savings
    ]
    return Table(("release", "how", "after", "saved", "of all bytes"), (*rows, *_bound_rows(facts)), frozenset({0, 1}))


def _bound_rows(facts: Facts) -> Iterable[tuple[str, ...]]:
    if facts.bounds is None:
        return
    bounds = (
        (facts.bounds.across_bytes, "across models"),
        (facts.bounds.widest_bytes, "with repeats within models, and slices"),
    )
    for count_bytes, words in bounds:
        yield "bound", words, "–", format_bytes(count_bytes), percent(facts.share(count_bytes))


def accuracies_table(facts: Facts) -> Table:
    """Every query; those that were not merged answer as they always did."""
    rows = []
    for name, released in facts.manifest.queries.items():
        found = released.accuracy
        if found is None:
            rows.append((name, released.query.model.builder, *["–"] * 3, percent(released.query.accuracy_target), "–"))
            continue
        against_labels = f"{percent(found.original_accuracy)} → {percent(found.merged_accuracy)}"
        rows.append(
            (
                name, released.query.model.builder, percent(found.agreement), percent(found.lower_bound),
                str(found.gate_frames), percent(found.target),
                "–" if found.original_accuracy is None else against_labels,
            )
        )  # fmt: skip
    columns = ("query", "model", "agreement", "lower bound", "gate frames", "target", "against labels, before → after")
    return Table(columns, tuple(rows), frozenset({0, 1}))


def points_table(facts: Facts) -> Table:
    """Every search's last release."""
    rows = [
        (
            percent(point.target), str(point.release), percent(point.saved_fraction), percent(point.worst_agreement),
            percent(point.worst_lower_bound),
        )
        for point in facts.points
    ]  # fmt: skip
    return Table(("target", "release", "saved", "worst query's agreement", "its lower bound"), tuple(rows))


def trials_table(facts: Facts) -> Table:
    """Every trial, in the order in which they ended."""
    rows = [
        (
            str(trial.candidate), trial.label, trial.reason, format_bytes(trial.saved_bytes), str(trial.steps),
            duration(trial.seconds), ", ".join(trial.objectors) or "–",
        )
        for trial in facts.trials
    ]  # fmt: skip
    columns = ("no.", "what was tried", "outcome", "saves", "steps", "took", "objectors")
    return Table(columns, tuple(rows), frozenset({0, 1, 2, 6}))


def prediction_table(facts: Facts) -> Table:
    """The search's judgement on its own prediction, in bytes."""
    found = facts.prediction
    assert found is not None, "shown only where there is one"
    rows = (
        ("possible across models", format_bytes(found.possible_bytes)),
        ("predicted by resemblance of weights", format_bytes(found.predicted_bytes)),
        ("of the predicted, shared in the end", format_bytes(found.kept_bytes)),
        ("shared in the end", format_bytes(found.accepted_bytes)),
    )
    return Table(("what", "bytes"), rows)


def simulations_table(facts: Facts) -> Table:
    """Every policy and budget; a budget that does not hold one model says so."""
    rows = []
    for row in sorted(facts.simulations, key=lambda row: (row["budget_bytes"], row["policy"])):
        memory = f"{row['budget_bytes'] / MIB:.1f} MiB"
        if "problem" in row:
            rows.append((row["policy"], memory, *["–"] * 4, "does not hold one model"))
            continue
        rows.append(
            (
                row["policy"], memory, percent(row["mean_goodput_fraction"]), percent(row["worst_goodput_fraction"]),
                percent(row.get("mean_accuracy")), format_bytes(row["swap_bytes"]), "",
            )
        )  # fmt: skip
    columns = ("policy", "memory", "goodput", "worst query", "end-to-end accuracy", "loaded", "")
    return Table(columns, tuple(rows), frozenset({0, 6}))


def provenance_table(facts: Facts) -> Table:
    """How each release of the lineage was made."""
    rows = []
    for manifest in facts.lineage:
        made = manifest.provenance
        rows.append(
            (str(manifest.release), readable_time(made.created_at), short_command(made.command), str(made.seed))
        )
    return Table(("release", "made", "command", "seed"), tuple(rows), frozenset({0, 1, 2}))


def versions(facts: Facts) -> str:
    """'python 3.11.7, torch 2.14.1, ...'"""
    found = facts.manifest.provenance.versions
    return ", ".join(f"{name} {found[name]}" for name in sorted(found)) or "not recorded"


def commands(facts: Facts) -> list[str]:
    """Commands that repeat this report's numbers from its store."""
    store, release = shlex.quote(facts.store), facts.manifest.release
    return [
        f"gemel verify {store}",
        f"gemel show {store} --release {release}",
        f"gemel profile {store} --release {release} --out profile.json",
        f"gemel report {store} --release {release} --profile profile.json --out report.html",
    ]


def short_command(command: str) -> str:
    """A command as people type it: without the folder of its program, or keys that older versions kept."""
    program, _, rest = shown_command(command.split(" ")).partition(" ")
    return f"{PurePath(program).name} {rest}".strip()


def duration(seconds: float) -> str:
    """'1 h 05 min', '2 min 05 s', '5.4 s'."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds >= 60 else f"{seconds:.1f} s"

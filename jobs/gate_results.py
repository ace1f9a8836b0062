"""Reading the records of bench_gate: what the gate said of a query, and what frames said that came later."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tables import rows_of

Record = Mapping[str, Any]

HEADS = (
    "search", "candidates", "passes", "gate frames", "saved", "gate, mean (bound)", "later frames, mean",
    "below the bound", "below the target",
)  # fmt: skip


def promises(record: Record) -> Iterator[str]:
    """One row for each search, and one for all of them."""
    options, searches = record["options"], record["searches"]
    target = float(options["target"])
    yield (
        f"**Does the gate keep its promise?** Searches at {options['target']}, `--gate-margin "
        f"{options['gate_margin']}`, on {options['cameras']} drawn cameras each; every query of every release that "
        f"they published, on {int(options['later']):,} frames that came after those of the search. Of the gate's "
        "lower bounds one in twenty may be too high:\n"
    )
    rows = [_row(str(number), [search], target) for number, search in enumerate(searches)]
    yield from rows_of(HEADS, [*rows, _row("all", searches, target)])


def in_short(record: Record) -> Iterator[str]:
    """What all searches came to, in a sentence."""
    target = float(record["options"]["target"])
    _, candidates, passes, frames, _, gate, later, below_bound, below_target = _row("", record["searches"], target)
    yield (
        f"**The gate**: {len(record['searches'])} searches of drawn cameras tried {candidates} candidates, and queries "
        f"passed {passes} times, on gates of {frames} frames. On {int(record['options']['later']):,} frames that came "
        f"after the search, {below_target} of these are below their target of {target:g} and {below_bound} below the "
        f"gate's lower bound (one in twenty may be); on average the gate said {gate.replace('(', '(at least ')}, later "
        f"frames say {later}."
    )


def _row(name: str, searches: Sequence[Record], target: float) -> tuple[str, ...]:
    passed = [row for search in searches for row in search["passed"]]
    candidates = str(sum(search["candidates"] for search in searches))
    if not passed:
        return (name, candidates, "0", *["–"] * (len(HEADS) - 3))
    estimate, bound, later = (
        statistics.fmean(row[key] for row in passed) for key in ("estimate", "lower_bound", "later")
    )
    saved = statistics.fmean(max((row["saved_fraction"] for row in search["passed"]), default=0) for search in searches)
    return (
        name,
        candidates,
        str(len(passed)),
        f"{statistics.fmean(row['gate_frames'] for row in passed):.0f}",
        f"{100 * saved:.1f} %",
        f"{estimate:.3f} ({bound:.3f})",
        f"{later:.3f}",
        str(sum(row["later"] < row["lower_bound"] for row in passed)),
        str(sum(row["later"] < target for row in passed)),
    )

"""Reading the records of bench_gate: what the gate said of a query, and what frames said that came later."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tables import percent, rows_of

Record = Mapping[str, Any]

HEADS = (
    "search", "candidates", "passes", "gate frames", "saved", "gate, mean (bound)", "later frames, mean",
    "below the bound", "below the target",
)  # fmt: skip
_MEANS = ("gate_frames", "estimate", "lower_bound", "later")


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


class _Held(NamedTuple):
    """What the gate let pass, and what later frames say of it; means over all passes."""

    passes: int
    gate_frames: float
    estimate: float
    lower_bound: float
    later: float
    below_bound: int
    below_target: int


def in_short(record: Record) -> Iterator[str]:
    """What all searches came to, in a sentence."""
    target, searches = float(record["options"]["target"]), record["searches"]
    if (held := _held(searches, target)) is None:
        return
    yield (
        f"**The gate**: {len(searches)} searches of drawn cameras tried {_candidates(searches)} candidates, and "
        f"queries passed {held.passes} times, on gates of {held.gate_frames:.0f} frames. On "
        f"{int(record['options']['later']):,} frames that came after the search, {held.below_target} of these are "
        f"below their target of {target:g} and {held.below_bound} below the gate's lower bound (one in twenty may be); "
        f"on average the gate said {held.estimate:.3f} (at least {held.lower_bound:.3f}), later frames say "
        f"{held.later:.3f}."
    )


def _held(searches: Sequence[Record], target: float) -> _Held | None:
    """None where nothing passed."""
    passed = [row for search in searches for row in search["passed"]]
    if not passed:
        return None
    means = {key: statistics.fmean(row[key] for row in passed) for key in _MEANS}
    below_bound = sum(row["later"] < row["lower_bound"] for row in passed)
    return _Held(len(passed), **means, below_bound=below_bound, below_target=sum(r["later"] < target for r in passed))


def _candidates(searches: Sequence[Record]) -> int:
    return sum(search["candidates"] for search in searches)


def _row(name: str, searches: Sequence[Record], target: float) -> tuple[str, ...]:
    candidates = str(_candidates(searches))
    if (held := _held(searches, target)) is None:
        return (name, candidates, "0", *["–"] * (len(HEADS) - 3))
    saved = statistics.fmean(max((row["saved_fraction"] for row in search["passed"]), default=0) for search in searches)
    return (
        name,
        candidates,
        str(held.passes),
        f"{held.gate_frames:.0f}",
        percent(saved),
        f"{held.estimate:.3f} ({held.lower_bound:.3f})",
        f"{held.later:.3f}",
        str(held.below_bound),
        str(held.below_target),
    )

"""Tables and numbers in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def rows_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    yield from ("| " + " | ".join(row) + " |" for row in rows)

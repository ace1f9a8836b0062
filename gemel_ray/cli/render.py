"""What all tables for people share. They show the same plain documents that --json prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

Document = Mapping[str, Any]

# A column whose title ends so holds numbers.
_NUMBERS = (
    "size", "layers", "saved", "share", "agreement", "target", "bound", "frames", "accuracy", "merged", "swapped",
)  # fmt: skip


def table(title: str, *columns: str) -> Table:
    """An empty table with these columns; numbers stand to the right."""
    found = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        numeric = column.endswith(_NUMBERS)
        found.add_column(
            column, justify="right" if numeric else "left", overflow="fold", no_wrap=column in ("query", "policy")
        )
    return found


def percent(fraction: float | None) -> str:
    """'97.1 %', or a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"

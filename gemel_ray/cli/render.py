"""What all tables for people share. They show the same plain documents that --json prints."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

Document = Mapping[str, Any]

# A column whose title ends so holds numbers.
_NUMBERS = (
    "size", "layers", "saved", "share", "agreement", "target", "bound", "frames", "accuracy", "merged", "swapped",
    "goodput", "worst", "stale", "busy", "memory", "shared", "private", "free", "queries", "members", "latency",
    "before", "after",
)  # fmt: skip
# Between two columns; and what is broken even within words.
_GAP = 2
_LONG_WORD = 8
# What torch takes where nobody says anything else.
_USUAL = re.compile(r" (?:stride|dilation)=1(?:x1)*\b| (?:output_)?padding=0(?:x0)*\b| groups=1\b| padding_mode=zeros")


def table(title: str, *columns: str) -> Table:
    """An empty table with these columns, without lines between them: a terminal of 80 characters holds more of it.
    Numbers stand to the right and are never broken, nor are names."""
    found = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, 0, 0, 1),
    )  # fmt: skip
    for column in columns:
        numeric = column.endswith(_NUMBERS)
        whole = numeric or column in ("query", "policy", "node", "made")
        found.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    return found


def show_table(shown: Table) -> None:
    """Print it; titles of columns are broken between words, and where that is not enough it is wider than the terminal:
    half of a number would be another number."""
    widths = [_least_width(column) for column in shown.columns]
    least = sum(widths) + _GAP * (len(widths) - 1)
    console = Console(markup=False, width=max(Console().width, least))
    console.print(shown)
    console.print()


def results() -> Console:
    """Where results for people go. Brackets in what is printed are a path's or a name's own."""
    return Console(markup=False)


def _least_width(column: Column) -> int:
    """What a column needs, once its title is as narrow as that."""
    title, cells = str(column.header), [str(cell) for cell in column.cells]
    words = [len(word) for text in (title, *([] if column.no_wrap else cells)) for word in text.split()]
    if not column.no_wrap:
        return min(max(words, default=0), _LONG_WORD)
    width = max([*words, *map(len, cells)], default=0)
    column.header = textwrap.fill(title, max(width, 1), break_long_words=False)
    return width


def percent(fraction: float | None) -> str:
    """'97.1 %', or a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def brief_signature(signature: str) -> str:
    """A layer's signature without what is usual: 'Conv2d weight=64x64x3x3 padding=1x1'."""
    return _USUAL.sub("", signature)

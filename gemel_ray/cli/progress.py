"""How far a command is, on stderr: a line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gemel_ray.cli.common import tell

# What is over sooner needs no word where nothing can take it back.
_PATIENCE_S = 2.0

Advance = Callable[[int, int], None]


@contextmanager
def working(doing: str, *, speaks: bool = False) -> Iterator[Advance]:
    """Say what takes time until the block ends. What it gives is called with how much is done, of how much.

    On a terminal the line shows the time so far, and is gone afterwards; lines told meanwhile stand above it.
    Elsewhere one plain line says it after two seconds, unless the work speaks for itself.
    """
    # A terminal that cannot move its cursor would fill with lines.
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        with _line(console) as line:
            task = line.add_task(doing, total=None, count="")
            yield lambda done, total: line.update(task, completed=done, total=total, count=f"{done} of {total}")
        return
    timer = threading.Timer(_PATIENCE_S, tell, [doing])
    timer.daemon = True
    if not speaks:
        timer.start()
    try:
        yield lambda done, total: None
    finally:
        timer.cancel()


def _line(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}"), TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip

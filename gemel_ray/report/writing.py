"""Writing a report: the page, and its plots as pictures where they are wanted."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemel_ray.spec.errors import GemelError
from gemel_ray.weights.outputs import write_output

if TYPE_CHECKING:
    # Both need the plotting library, which an edge box does without.
    from gemel_ray.report.facts import Facts
    from gemel_ray.report.sections import Section


def write_report(
    store_uri: str | Path,
    out: Path,
    *,
    release: int | None = None,
    png: Path | None = None,
    simulations: Sequence[Mapping[str, Any]] = (),
    allow_factories: bool = False,
) -> dict[str, Any]:
    """Write the report on a release, HEAD's by default, to one HTML file; the facts as plain data, and the files.

    With `png` every plot also becomes a picture there, on light and on dark ground. Raises GemelError where the
    plotting library is missing, StoreError for a store that cannot be read, InputError for a file that cannot be
    written.
    """
    check_plotting()
    from gemel_ray.report.gathering import gather
    from gemel_ray.report.page import page

    facts = gather(str(store_uri), release, simulations=simulations, allow_factories=allow_factories)
    write_output(out, page(facts).encode())
    pictures = [] if png is None else [str(path) for path in _pictures(facts, png)]
    return {"report": str(out), "pictures": pictures, **facts.document()}


def check_plotting() -> None:
    """GemelError with the way out where there is no plotting library."""
    if importlib.util.find_spec("matplotlib") is None:
        raise GemelError("a report needs matplotlib, which is not installed; pip install 'gemel-ray[report]'")


def _pictures(facts: Facts, folder: Path) -> Iterator[Path]:
    from gemel_ray.report.sections import present

    for section in present(facts):
        yield from _drawn(section, facts, folder)


def _drawn(section: Section, facts: Facts, folder: Path) -> Iterator[Path]:
    from gemel_ray.report.inks import DARK, LIGHT, Sheet, to_png

    plot = section.plot
    if plot is None:
        return
    for name, ground in (("light", LIGHT), ("dark", DARK)):
        sheet, path = Sheet(ground), folder / f"{section.name}_{name}.png"
        height, width = plot.height(facts, sheet), plot.width(facts, sheet)
        write_output(path, to_png(lambda figure, sheet=sheet: plot.draw(figure, facts, sheet), sheet, height, width))  # type: ignore[misc]
        yield path

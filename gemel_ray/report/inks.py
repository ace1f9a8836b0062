"""Colours, sizes, and what a drawing becomes: SVG that follows the page's light or dark, or a picture for print.

Colours are Okabe and Ito's (2008), lighter ones on dark ground; no plot tells by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Figures are drawn so that an inch of them is so many pixels on the page.
PIXELS_PER_INCH = 100
_PNG_DPI = 160


@dataclass(frozen=True, slots=True)
class Ground:
    """The colours of one ground. Each must be distinct: on the page they are replaced by name."""

    paper: str
    ink: str
    soft: str
    grid: str
    private: str
    rest: str
    on_colour: str
    blue: str
    orange: str
    green: str
    purple: str
    sky: str
    yellow: str
    plain: str

    @property
    def hues(self) -> tuple[str, ...]:
        """For what is told apart by colour and something else."""
        return self.blue, self.orange, self.green, self.purple, self.sky, self.yellow


LIGHT = Ground(
    paper="#fffffe", ink="#1a1b1e", soft="#5b6067", grid="#dcdee1", private="#d3d7dc", rest="#e9ebee",
    on_colour="#fefefe", blue="#0072b2", orange="#c24e00", green="#007a5a", purple="#a8468a", sky="#3a7ca8",
    yellow="#8a6500", plain="#6d7a89",
)  # fmt: skip
DARK = Ground(
    paper="#16191d", ink="#eceef0", soft="#a9b0b8", grid="#353b43", private="#464d56", rest="#2c3239",
    on_colour="#0f1114", blue="#56b4e9", orange="#ff9248", green="#2ec4a0", purple="#e6a5cb", sky="#9ad0f0",
    yellow="#f0c75e", plain="#93a1b1",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a plot is drawn on: a ground, and the width of a page or of a phone in inches."""

    ground: Ground = LIGHT
    is_narrow: bool = False

    @property
    def width(self) -> float:
        """In inches."""
        return 3.5 if self.is_narrow else 9.6

    def shortened(self, name: str, most: int = 34) -> str:
        """A name that fits: on a narrow sheet at most 16 characters."""
        most = min(most, 16) if self.is_narrow else most
        name = plain(name)
        return name if len(name) <= most else name[: most - 1] + "…"


Draw = Callable[[Figure], None]


def plain(text: str) -> str:
    """Text as it stands: matplotlib takes what is between dollar signs for mathematics; unprintable characters go."""
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")


def to_svg(draw: Draw, sheet: Sheet, height: float, name: str, width: float | None = None) -> str:
    """One <svg> for the page, its colours CSS variables. Sizes in inches; `name` keeps its ids apart from others'."""
    figure, file = Figure(figsize=(width or sheet.width, height), layout="constrained"), io.StringIO()
    with mpl.rc_context(_style(sheet) | {"svg.fonttype": "path", "svg.hashsalt": name}):
        draw(figure)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None})
    return _for_page(file.getvalue(), sheet.ground, name)


def to_png(draw: Draw, sheet: Sheet, height: float, width: float | None = None) -> bytes:
    """The same as a PNG with a ground of its own."""
    figure, file = Figure(figsize=(width or sheet.width, height), layout="constrained"), io.BytesIO()
    with mpl.rc_context(_style(sheet)):
        figure.set_facecolor(sheet.ground.paper)
        draw(figure)
        figure.savefig(file, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return file.getvalue()


def css_variables(ground: Ground) -> str:
    """'--ink: #1a1b1e; ...' for a style sheet."""
    return " ".join(f"--{each.name.replace('_', '-')}: {getattr(ground, each.name)};" for each in fields(ground))


def _style(sheet: Sheet) -> dict[Any, Any]:
    ink, soft, grid = sheet.ground.ink, sheet.ground.soft, sheet.ground.grid
    return {
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": soft, "xtick.color": ink, "ytick.color": ink,
        "grid.color": grid, "axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
        "font.size": 9.5 if sheet.is_narrow else 10.5, "axes.axisbelow": True, "hatch.linewidth": 0.8,
        "legend.frameon": False, "font.family": ["DejaVu Sans"],
    }  # fmt: skip


def _for_page(svg: str, ground: Ground, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    for each in fields(ground):
        svg = svg.replace(getattr(ground, each.name), f"var(--{each.name.replace('_', '-')})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # Ids count for the whole page.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    return re.sub(r"url\(#", f"url(#{name}-", svg)

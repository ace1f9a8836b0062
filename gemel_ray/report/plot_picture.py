"""Drawing the picture: columns of layers, the layers that save most each with a colour and a number, ties between."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path

from gemel_ray.report.facts import Facts
from gemel_ray.report.inks import Ground, Sheet, plain
from gemel_ray.report.picture import Block, Column, Picture, Tie
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.units import MIB

# In widths of a column's place, which is 1.
_HALF = 0.24
_NARROWEST_INCHES = 0.62
# A number is legible in a block of at least so much of the picture's height.
_NUMBERED_FRACTION = 0.018


def picture_width(facts: Facts, sheet: Sheet) -> float:
    """In inches; wider than the sheet where it has many columns, so that the page scrolls it."""
    return max(sheet.width, 0.8 + _NARROWEST_INCHES * len(facts.picture.columns))


def picture_height(facts: Facts, sheet: Sheet) -> float:
    """In inches."""
    return 5.6 if sheet.is_narrow else 6.2


def draw_picture(figure: Figure, facts: Facts, sheet: Sheet) -> None:
    """Input on top, output below. Full colour: the copy that is counted; pale: used again, at no bytes."""
    picture, axes = facts.picture, figure.subplots()
    for tie in picture.ties:
        axes.add_patch(_band(tie, sheet.ground))
    for block in picture.blocks:
        axes.add_patch(_box(block, sheet.ground))
    for column in picture.columns:
        axes.add_patch(_outline(column, sheet.ground))
    _number(axes, picture, sheet.ground)
    _label(axes, picture, sheet)
    figure.legend(
        handles=_legend(picture, sheet), loc="outside lower left", ncols=2 if sheet.is_narrow else 4, handlelength=1.2,
        fontsize="small", columnspacing=1.0,
    )  # fmt: skip


def _hue(share: int | None, ground: Ground) -> str:
    if share is None:
        return ground.private
    return ground.hues[share] if share < len(ground.hues) else ground.plain


def _box(block: Block, ground: Ground) -> Rectangle:
    colour = _hue(block.share, ground) if block.layer else ground.rest
    corner = (block.column - _HALF, block.top_bytes / MIB)
    box = Rectangle(
        corner, 2 * _HALF, block.height_bytes / MIB, facecolor=colour, edgecolor=ground.paper, linewidth=0.4, zorder=3,
    )  # fmt: skip
    if block.share is not None and not block.is_counted:
        box.set(alpha=0.55)
    return box


def _outline(column: Column, ground: Ground) -> Rectangle:
    corner, height = (column.place - _HALF, 0), column.height_bytes / MIB
    return Rectangle(corner, 2 * _HALF, height, facecolor="none", edgecolor=ground.soft, linewidth=0.9, zorder=4)


def _band(tie: Tie, ground: Ground) -> PathPatch:
    if tie.is_within:
        return _arc(tie, ground)
    left, right = tie.start.column + _HALF, tie.end.column - _HALF
    top_a, top_b = tie.start.top_bytes / MIB, tie.end.top_bytes / MIB
    low_a, low_b = top_a + tie.start.height_bytes / MIB, top_b + tie.end.height_bytes / MIB
    middle = (left + right) / 2
    path = Path(
        [(left, top_a), (middle, top_a), (middle, top_b), (right, top_b),
         (right, low_b), (middle, low_b), (middle, low_a), (left, low_a), (left, top_a)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4,
         Path.CLOSEPOLY],
    )  # fmt: skip
    return PathPatch(path, facecolor=_hue(tie.start.share, ground), edgecolor="none", alpha=0.24, zorder=1)


def _arc(tie: Tie, ground: Ground) -> PathPatch:
    """Within one model: a bow at the column's right side."""
    edge, top, low = tie.start.column + _HALF, tie.start.middle_bytes / MIB, tie.end.middle_bytes / MIB
    path = Path(
        [(edge, top), (edge + 0.2, top), (edge + 0.2, low), (edge, low)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
    )
    return PathPatch(path, facecolor="none", edgecolor=_hue(tie.start.share, ground), linewidth=1.3, zorder=4)


def _number(axes: Axes, picture: Picture, ground: Ground) -> None:
    for block in picture.blocks:
        is_high = block.height_bytes > _NUMBERED_FRACTION * picture.height_bytes
        if block.share is not None and block.share < len(ground.hues) and is_high:
            axes.text(
                block.column, block.middle_bytes / MIB, str(block.share + 1), ha="center", va="center_baseline",
                fontsize=8, color=ground.on_colour if block.is_counted else ground.ink, zorder=5,
            )  # fmt: skip


def _label(axes: Axes, picture: Picture, sheet: Sheet) -> None:
    axes.set_xlim(-0.5, max(len(picture.columns), 1) - 0.45)
    axes.set_ylim(picture.height_bytes / MIB * 1.01, 0)
    names = [sheet.shortened(column.query, 22) for column in picture.columns]
    is_tight = sheet.is_narrow or len(names) > 5
    axes.set_xticks(range(len(names)), names)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    for label in axes.get_xticklabels() if is_tight else ():
        label.set(rotation=90, va="bottom")
    axes.spines[["bottom"]].set_visible(False)
    axes.set_ylabel("MiB, from input to output")


def _legend(picture: Picture, sheet: Sheet) -> list[Patch]:
    ground, most = sheet.ground, len(sheet.ground.hues)
    found = [
        Patch(facecolor=ground.hues[place], label=f"{place + 1}  {_name(layer.members, 15 if sheet.is_narrow else 26)}")
        for place, layer in enumerate(picture.shares[:most])
    ]
    if len(picture.shares) > most:
        found.append(Patch(facecolor=ground.plain, label=f"{len(picture.shares) - most} more shared"))
    return [
        *found,
        Patch(facecolor=ground.private, label="own weights"),
        Patch(facecolor=ground.rest, label="norms and others"),
    ]


def _name(members: Sequence[LayerRef], most: int) -> str:
    """The first member's path, of which the end tells most, and how many members there are."""
    layer = plain(members[0].layer)
    return f"{layer if len(layer) <= most else '…' + layer[1 - most :]} ×{len(members)}"

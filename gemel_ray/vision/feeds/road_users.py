"""Drawing road users, and the clutter that resembles them."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw

# Width and height in units of a street's scale.
KINDS = {
    "bike": (0.75, 0.62),
    "bus": (2.1, 1.0),
    "car": (1.25, 0.58),
    "person": (0.32, 0.85),
    "truck": (1.9, 0.95),
}
_DARK = (25, 25, 30)
_GLASS = (60, 75, 90)
Place = tuple[float, float, float, float]
Colour = tuple[int, int, int]


def draw_road_user(canvas: PIL.Image.Image, kind: str, place: Place, look_seed: int, *, lights: bool) -> None:
    """Draw one road user into (left, top, width, height); its look follows from its seed."""
    draw = PIL.ImageDraw.Draw(canvas)
    rng = np.random.default_rng(look_seed)
    colour: Colour = tuple(int(c) for c in rng.integers(30, 230, size=3))  # type: ignore[assignment]
    left, top, width, height = place
    draw.ellipse((left, top + 0.88 * height, left + width, top + 1.06 * height), fill=(45, 45, 50))
    {"car": _car, "truck": _truck, "bus": _bus, "person": _person, "bike": _bike}[kind](draw, place, colour)
    if lights and kind != "person":
        for end in (0.02, 0.94):
            lamp = left + end * width
            draw.rectangle((lamp, top + 0.6 * height, lamp + 0.04 * width, top + 0.72 * height), fill=(255, 250, 200))


def _part(place: Place, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    """A rectangle in fractions of a place."""
    x, y, width, height = place
    return (x + left * width, y + top * height, x + right * width, y + bottom * height)


def _wheels(draw: PIL.ImageDraw.ImageDraw, place: Place, centres: tuple[float, ...], size: float) -> None:
    for centre in centres:
        draw.ellipse(_part(place, centre - size / 2, 0.78, centre + size / 2, 1.0), fill=_DARK)


def _car(draw: PIL.ImageDraw.ImageDraw, place: Place, colour: Colour) -> None:
    draw.rectangle(_part(place, 0.2, 0.05, 0.78, 0.5), fill=colour)
    draw.rectangle(_part(place, 0.26, 0.14, 0.72, 0.42), fill=_GLASS)
    draw.rectangle(_part(place, 0.0, 0.42, 1.0, 0.86), fill=colour)
    _wheels(draw, place, (0.22, 0.78), 0.18)


def _truck(draw: PIL.ImageDraw.ImageDraw, place: Place, colour: Colour) -> None:
    draw.rectangle(_part(place, 0.0, 0.0, 0.7, 0.86), fill=colour)
    draw.rectangle(_part(place, 0.74, 0.25, 1.0, 0.86), fill=tuple(c // 2 for c in colour))
    draw.rectangle(_part(place, 0.84, 0.32, 0.98, 0.55), fill=_GLASS)
    _wheels(draw, place, (0.15, 0.5, 0.86), 0.13)


def _bus(draw: PIL.ImageDraw.ImageDraw, place: Place, colour: Colour) -> None:
    draw.rectangle(_part(place, 0.0, 0.0, 1.0, 0.88), fill=colour)
    for window in range(5):
        left = 0.05 + 0.19 * window
        draw.rectangle(_part(place, left, 0.15, left + 0.14, 0.5), fill=_GLASS)
    _wheels(draw, place, (0.2, 0.8), 0.13)


def _person(draw: PIL.ImageDraw.ImageDraw, place: Place, colour: Colour) -> None:
    draw.ellipse(_part(place, 0.28, 0.0, 0.72, 0.2), fill=(190, 150, 120))
    draw.rectangle(_part(place, 0.12, 0.2, 0.88, 0.6), fill=colour)
    draw.rectangle(_part(place, 0.18, 0.6, 0.45, 1.0), fill=_DARK)
    draw.rectangle(_part(place, 0.55, 0.6, 0.82, 1.0), fill=_DARK)


def _bike(draw: PIL.ImageDraw.ImageDraw, place: Place, colour: Colour) -> None:
    for left in (0.0, 0.58):
        draw.ellipse(_part(place, left, 0.52, left + 0.42, 1.0), outline=_DARK)
    draw.line((*_part(place, 0.2, 0.76, 0.78, 0.55),), fill=_DARK)
    draw.rectangle(_part(place, 0.32, 0.16, 0.58, 0.6), fill=colour)
    draw.ellipse(_part(place, 0.42, 0.0, 0.62, 0.18), fill=(190, 150, 120))


def draw_clutter(
    draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int
) -> None:
    """A window, sign, bin or patch of road: shapes and colours of road users that never move."""
    colour = tuple(int(c) for c in rng.integers(40, 210, size=3))
    wide, tall = rng.uniform(0.05, 0.25) * width, rng.uniform(0.06, 0.2) * height
    left = rng.uniform(0, width)
    top = rng.uniform(0, horizon) if rng.random() < 0.6 else rng.uniform(horizon, height * 0.9)
    if rng.random() < 0.7:
        draw.rectangle((left, top, left + wide, top + tall), fill=colour)
    else:
        draw.ellipse((left, top, left + wide, top + tall), fill=colour)

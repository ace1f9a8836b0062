"""A procedural street camera: labelled frames without a download, the same for the same seed.

Every frame is drawn from (seed, index) alone, so frames may be read in any order. Cameras differ in background,
light, colour cast, scale and noise; clutter that resembles road users keeps small models below 100 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

from gemel_ray.spec.answers import Box
from gemel_ray.spec.feeds import StreetsFeed
from gemel_ray.vision.feeds.frames import FeedFrame, Image
from gemel_ray.vision.feeds.road_users import KINDS, draw_clutter, draw_road_user

# Passing objects are scheduled in slots of this many frames each.
_SLOT_FRAMES = 12
# A box counts once this share of the object is inside the frame.
_VISIBLE_FRACTION = 0.35


@dataclass(frozen=True, slots=True)
class _Passage:
    """One road user crossing the view: where and when it drives, how it looks."""

    kind: str
    first_frame: float
    duration_frames: float
    lane: float
    rightwards: bool
    look_seed: int


class Streets:
    """The camera."""

    vocabulary: frozenset[str] | None = frozenset(KINDS)

    def __init__(self, name: str, spec: StreetsFeed) -> None:
        self.name, self.fps = name, spec.fps
        self._spec = spec
        rng = np.random.default_rng([spec.seed, 1])
        self._horizon = float(rng.uniform(0.25, 0.42))
        self._light = float(rng.uniform(0.8, 1.12))
        self._cast = rng.uniform(0.9, 1.1, size=3)
        self._noise = float(rng.uniform(5, 12))
        self._scale = float(rng.uniform(0.85, 1.2))
        self._background = self._draw_background(rng)

    def frames(self) -> Iterator[FeedFrame]:
        """All frames in order."""
        return (self.frame(index) for index in range(self._spec.frames))

    def frame(self, index: int) -> FeedFrame:
        """One frame by its index."""
        canvas = self._background.copy()
        boxes = [box for passage in self._passages(index) if (box := self._draw(canvas, passage, index))]
        return FeedFrame(index, index / self.fps, self._expose(canvas, index), boxes=tuple(boxes))

    def _draw_background(self, rng: np.random.Generator) -> PIL.Image.Image:
        width, height = self._spec.width, self._spec.height
        horizon = int(self._horizon * height)
        wall, road, kerb = (_greyish(rng, low, high) for low, high in ((80, 180), (75, 120), (120, 170)))
        canvas = PIL.Image.new("RGB", (width, height), road)
        draw = PIL.ImageDraw.Draw(canvas)
        draw.rectangle((0, 0, width, horizon), fill=wall)
        draw.rectangle((0, horizon, width, horizon + height // 12), fill=kerb)
        for _ in range(int(rng.integers(4, 9))):
            draw_clutter(draw, rng, width, height, horizon)
        dash = max(3, width // 12)
        for left in range(int(rng.integers(0, dash)), width, 2 * dash):
            draw.line((left, int(height * 0.72), left + dash, int(height * 0.72)), fill=(200, 200, 190))
        return canvas.filter(PIL.ImageFilter.GaussianBlur(0.6))

    def _passages(self, index: int) -> list[_Passage]:
        """Road users that may be in view, far lanes first so that near ones cover them."""
        slot = index // _SLOT_FRAMES
        found = [p for number in range(max(0, slot - 2), slot + 1) for p in self._starting_in(number)]
        present = [p for p in found if 0 <= index - p.first_frame <= p.duration_frames]
        return sorted(present, key=lambda passage: passage.lane)

    def _starting_in(self, slot: int) -> list[_Passage]:
        rng = np.random.default_rng([self._spec.seed, 2, slot])
        # Little's law: the mean number in view is the rate of arrivals times the mean time in view.
        rate = self._spec.traffic * self._spec.width / 64
        return [self._passage(rng, slot) for _ in range(rng.poisson(rate))]

    def _passage(self, rng: np.random.Generator, slot: int) -> _Passage:
        kind = str(rng.choice(sorted(KINDS), p=[0.15, 0.12, 0.4, 0.18, 0.15]))
        return _Passage(
            kind=kind,
            first_frame=(slot + float(rng.random())) * _SLOT_FRAMES,
            duration_frames=float(rng.uniform(8, 16)) * (1.4 if kind in ("person", "bike") else 1.0),
            lane=float(rng.uniform(0, 1)),
            rightwards=bool(rng.random() < 0.5),
            look_seed=int(rng.integers(2**31)),
        )

    def _draw(self, canvas: PIL.Image.Image, passage: _Passage, index: int) -> Box | None:
        width, height = canvas.size
        depth = 0.65 + 0.5 * passage.lane
        unit = min(height, 160) * 0.42 * depth * self._scale
        body_width, body_height = (unit * part for part in KINDS[passage.kind])
        progress = (index - passage.first_frame) / passage.duration_frames
        along = progress if passage.rightwards else 1 - progress
        left = along * (width + body_width) - body_width
        bottom = height * (self._horizon + 0.22 + (0.95 - self._horizon - 0.22) * passage.lane)
        place = (left, bottom - body_height, body_width, body_height)
        draw_road_user(canvas, passage.kind, place, passage.look_seed, lights=self._dusk(index) > 0.4)
        return _visible(passage.kind, place, width, height)

    def _dusk(self, index: int) -> float:
        return self._spec.dusk * index / max(1, self._spec.frames - 1)

    def _expose(self, canvas: PIL.Image.Image, index: int) -> Image:
        """Light, colour cast, slow clouds and sensor noise."""
        rng = np.random.default_rng([self._spec.seed, 3, index])
        dusk = self._dusk(index)
        cloud = 1 + 0.08 * np.sin(index / 97 + self._spec.seed)
        gain = self._light * cloud * (1 - 0.62 * dusk) * self._cast * np.array([1 - 0.15 * dusk, 1 - 0.05 * dusk, 1.0])
        noise = rng.standard_normal(size=(canvas.height, canvas.width, 1), dtype=np.float32) * self._noise * (1 + dusk)
        return np.clip(np.asarray(canvas, dtype=np.float32) * gain + noise, 0, 255).astype(np.uint8)


def _greyish(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    """A colour of walls and asphalt: a grey with a slight tint."""
    red, green, blue = (int(c) for c in rng.integers(low, high) + rng.integers(-14, 15, size=3))
    return red, green, blue


def _visible(kind: str, place: tuple[float, float, float, float], width: int, height: int) -> Box | None:
    left, top, body_width, body_height = place
    right, bottom = min(width, left + body_width), min(height, top + body_height)
    left, top = max(0.0, left), max(0.0, top)
    seen = max(0.0, right - left) * max(0.0, bottom - top)
    if seen < _VISIBLE_FRACTION * body_width * body_height:
        return None
    return Box(kind, 1.0, left, top, right - left, bottom - top)

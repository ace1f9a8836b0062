"""A camera's tiles: is the target in this part of the frame?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.feeds import TilesFeed
from gemel_ray.vision.feeds.folders import read_image
from gemel_ray.vision.feeds.frames import FeedFrame, Image

BACKGROUND = "background"


class Tiles:
    """Tiles in order of frame and cell, labelled 'background' or the camera's target."""

    def __init__(self, name: str, spec: TilesFeed) -> None:
        self.name, self.fps = name, spec.fps
        self._folder = Path(spec.path)
        if not (self._folder / "tiles.jsonl").is_file():
            raise FeedError(
                f"feed {name!r}: {self._folder} holds no tiles.jsonl; give a camera folder with frames/, meta.json and "
                "tiles.jsonl"
            )
        self._target = self._read_target()
        self._tiles = sorted(self._read_tiles(), key=lambda tile: (tile["frame"], tile["cell"]))
        self.vocabulary: frozenset[str] | None = frozenset({BACKGROUND, self._target})

    def _read_target(self) -> str:
        path = self._folder / "meta.json"
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["target"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FeedError(f"feed {self.name!r}: {path} does not say the camera's 'target' ({error!r})") from error

    def _read_tiles(self) -> Iterator[dict[str, Any]]:
        path = self._folder / "tiles.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise FeedError(f"feed {self.name!r}: {path} cannot be read ({error}); write it as UTF-8") from error
        for number, line in enumerate(lines, start=1):
            try:
                yield self._tile(json.loads(line))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise FeedError(
                    f"feed {self.name!r}: {path}, line {number}: {error!r}; each line is one tile"
                ) from error

    def _tile(self, tile: dict[str, Any]) -> dict[str, Any]:
        left, top, width, height = place = [int(each) for each in tile["xywh"]]
        if place != tile["xywh"] or min(left, top) < 0 or min(width, height) < 1:
            raise ValueError(f"xywh {tile['xywh']} is no part of a frame in whole pixels")
        return {
            "frame": int(tile["frame"]),
            "cell": tuple(map(int, tile["cell"])),
            "place": (slice(top, top + height), slice(left, left + width)),
            "label": self._target if tile["y"] else BACKGROUND,
            "split": str(tile["split"]),
        }

    def frames(self) -> Iterator[FeedFrame]:
        """Every tile."""
        shown: tuple[int, Image] | None = None
        for index, tile in enumerate(self._tiles):
            path = self._folder / "frames" / f"{tile['frame']:06d}.jpg"
            if shown is None or shown[0] != tile["frame"]:
                shown = (tile["frame"], read_image(path, self.name))
            image = shown[1][tile["place"]]
            if not image.size:
                raise FeedError(
                    f"feed {self.name!r}: tile {list(tile['cell'])} lies outside of {path}; correct its 'xywh'"
                )
            yield FeedFrame(index, index / self.fps, image, label=tile["label"], split=tile["split"])

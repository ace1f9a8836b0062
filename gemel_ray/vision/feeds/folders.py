"""Folders of images: one sub-folder a class, or boxes in a COCO file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from gemel_ray.spec.answers import Box
from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.feeds import CocoFeed, ImageFolderFeed
from gemel_ray.vision.feeds.frames import FeedFrame, Image

_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def read_image(path: Path, feed: str) -> Image:
    """An image file as RGB; FeedError names the file when it cannot be read."""
    try:
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise FeedError(f"feed {feed!r}: {path} is no readable image ({error}); replace or remove the file") from error


class ImageFolder:
    """Images sorted by name, each labelled by its sub-folder. All classes advance together in time."""

    def __init__(self, name: str, spec: ImageFolderFeed) -> None:
        self.name, self.fps = name, spec.fps
        root = Path(spec.path)
        if not root.is_dir():
            raise FeedError(f"feed {name!r}: path {root} is no folder; give one with a sub-folder of images a class")
        files = [path for path in sorted(root.glob("*/*")) if path.suffix.lower() in _ENDINGS]
        if not files:
            raise FeedError(f"feed {name!r}: {root} has no images in sub-folders; make one sub-folder for each class")
        self._files = sorted(files, key=lambda path: (path.name, path.parent.name))
        # An empty sub-folder says that the class is known and was never seen.
        self.vocabulary: frozenset[str] | None = frozenset(path.name for path in root.iterdir() if path.is_dir())

    def frames(self) -> Iterator[FeedFrame]:
        """Every image with its class."""
        for index, path in enumerate(self._files):
            yield FeedFrame(index, index / self.fps, read_image(path, self.name), label=path.parent.name)


class CocoImages:
    """Images and boxes of a COCO annotation file, in order of file name; crowds are left out."""

    def __init__(self, name: str, spec: CocoFeed) -> None:
        self.name, self.fps = name, spec.fps
        self._folder = Path(spec.images)
        document = self._read(Path(spec.annotations))
        try:
            self._images = sorted(document["images"], key=lambda image: str(image["file_name"]))
            names = {category["id"]: str(category["name"]) for category in document["categories"]}
            self._boxes = _boxes_by_image(document["annotations"], names)
        except (KeyError, TypeError, ValueError) as error:
            raise FeedError(
                f"feed {name!r}: {spec.annotations} is not in COCO's form: {error!r} is missing or wrong"
            ) from error
        self.vocabulary: frozenset[str] | None = frozenset(names.values())

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise FeedError(f"feed {self.name!r}: annotations {path} cannot be read ({error.strerror})") from error
        except (ValueError, TypeError) as error:
            raise FeedError(f"feed {self.name!r}: annotations {path} are not valid JSON: {error}") from error

    def frames(self) -> Iterator[FeedFrame]:
        """Every image with its boxes."""
        for index, image in enumerate(self._images):
            pixels = read_image(self._folder / image["file_name"], self.name)
            yield FeedFrame(index, index / self.fps, pixels, boxes=tuple(self._boxes[image["id"]]))


def _boxes_by_image(annotations: list[dict[str, Any]], names: dict[int, str]) -> dict[int, list[Box]]:
    boxes: dict[int, list[Box]] = defaultdict(list)
    for found in annotations:
        if not found.get("iscrowd"):
            left, top, width, height = map(float, found["bbox"])
            boxes[found["image_id"]].append(Box(names[found["category_id"]], 1.0, left, top, width, height))
    return boxes

"""Folders of images: one sub-folder a class, or boxes in a COCO file."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image

from gemel_ray.spec.answers import Box
from gemel_ray.spec.errors import FeedError, brief
from gemel_ray.spec.feeds import PICTURE_MODES, CocoFeed, ImageFolderFeed
from gemel_ray.vision.feeds.frames import FeedFrame, Image

_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
# What Pillow raises for files that are not whole.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
T = TypeVar("T")


def read_image(path: Path, feed: str) -> Image:
    """An image file as RGB; FeedError names the file when it cannot be read.

    What is refused is what a service refuses (serving/pictures.py), or a model would be trained on other pixels than it
    is asked about.
    """
    try:
        with PIL.Image.open(path) as image:
            if image.mode in PICTURE_MODES:
                return np.asarray(image.convert("RGB"))
            mode = image.mode
    except (*_DAMAGED, PIL.Image.DecompressionBombError) as error:
        raise FeedError(f"feed {feed!r}: {path} is no readable image ({error}); replace or remove the file") from error
    raise FeedError(f"feed {feed!r}: {path} has pixels of kind {mode!r}; convert it to 8 bits a channel")


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
    """Images and boxes of a COCO annotation file, in order of file name; crowds and boxes without area are left out."""

    def __init__(self, name: str, spec: CocoFeed) -> None:
        self.name, self.fps = name, spec.fps
        self._folder, self._path = Path(spec.images), Path(spec.annotations)
        document = self._read()
        self._images = sorted(self._entries(document, "images", _image), key=lambda image: image[0])
        names = dict(self._entries(document, "categories", lambda found: (found["id"], str(found["name"]))))
        self._boxes: dict[object, list[Box]] = defaultdict(list)
        for image, box in self._entries(document, "annotations", lambda found: _box(found, names)):
            if box is not None:
                self._boxes[image].append(box)
        self.vocabulary: frozenset[str] | None = frozenset(names.values())

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except OSError as error:
            raise FeedError(
                f"feed {self.name!r}: annotations {self._path} cannot be read ({error.strerror})"
            ) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise FeedError(f"feed {self.name!r}: annotations {self._path} are not valid JSON: {error}") from error

    def _entries(self, document: dict[str, Any], kind: str, read: Callable[[Any], T]) -> list[T]:
        """One list of the document, each of its entries read."""
        entries, found = document.get(kind), []
        if not isinstance(entries, list):
            raise FeedError(f"feed {self.name!r}: {self._path} is not in COCO's form: it has no list {kind!r}; add it")
        for place, entry in enumerate(entries):
            try:
                found.append(read(entry))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise FeedError(
                    f"feed {self.name!r}: {self._path} is not in COCO's form: {kind}.{place} ({brief(error)}); correct "
                    "or remove that entry"
                ) from error
        return found

    def frames(self) -> Iterator[FeedFrame]:
        """Every image with its boxes."""
        for index, (file, image) in enumerate(self._images):
            pixels = read_image(self._folder / file, self.name)
            yield FeedFrame(index, index / self.fps, pixels, boxes=tuple(self._boxes[image]))


def _image(found: dict[str, Any]) -> tuple[str, object]:
    """Its file and its id."""
    if not isinstance(found["file_name"], str) or not isinstance(found["id"], int | str):
        raise ValueError(f"id {found['id']!r} or file_name {found['file_name']!r} is of a wrong type")
    return found["file_name"], found["id"]


def _box(found: dict[str, Any], names: dict[object, str]) -> tuple[object, Box | None]:
    """The image an annotation is for, and its box where it shows one object."""
    left, top, width, height = map(float, found["bbox"])
    if not all(map(math.isfinite, (left, top, width, height))) or min(width, height) < 0:
        raise ValueError(f"bbox {found['bbox']} is none")
    shows = not found.get("iscrowd") and min(width, height) > 0
    return found["image_id"], Box(names[found["category_id"]], 1.0, left, top, width, height) if shows else None

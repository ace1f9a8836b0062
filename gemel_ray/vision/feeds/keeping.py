"""A camera's frames written down as a feed of their own, within a number of bytes: the newest stay."""

from __future__ import annotations

import io
import json
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image

from gemel_ray.spec.answers import Answer, Classified
from gemel_ray.spec.errors import InputError, StoreError
from gemel_ray.spec.feeds import CocoFeed, ImageFolderFeed
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.feeds.frames import Image
from gemel_ray.vision.models import task_of
from gemel_ray.weights.files import Files

# What cameras send is compressed already; without loss, a tenth of the frames would fit.
_QUALITY = 95
_BOXES = ".boxes.json"
_ANNOTATIONS = "annotations.json"
# Annotations are written anew once for so many of the frames that they name, not for each that goes.
_ROOM_FRACTION = 1 / 16


class KeptFrames:
    """One query's frames with its original's answers, as an image folder (classifiers) or in COCO's form (detectors).

    For one process; `keep` from one thread, the rest from any. A frame's name is the time it was kept, so that names
    sort by time.
    """

    def __init__(self, folder: str | Path, model: ModelSpec, *, most_bytes: int) -> None:
        """`folder` is made if absent. InputError for classes that cannot be folders, such as 'a/b'."""
        self._folder = Path(folder)
        self._files = Files.at(self._folder)
        self._model = model
        self._detects = task_of(model) == "detection"
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        for place in self._places():
            place.mkdir(parents=True, exist_ok=True)
        for leftover in self._leftovers():
            leftover.unlink()
        # Whatever else lies there is not ours.
        own = [path for path in self._folder.glob("*/*.jpg") if path.stem.isdecimal()]
        found = sorted(own, key=lambda path: path.name)
        self._kept = deque((path, _bytes(path)) for path in found)
        self._held_bytes = sum(held for _, held in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def held_bytes(self) -> int:
        """Bytes on disk."""
        return self._held_bytes

    def keep(self, image: Image, answer: Answer, at_ms: int) -> None:
        """Write a frame down with the original's answer; the oldest go. StoreError where the disk does not let it, and
        nothing is left of that frame.

        `at_ms` is milliseconds since 1970; a clock that was set back does not make a frame older than those before.
        """
        newest_ms = int(self._kept[-1][0].stem) if self._kept else -1
        path = self._place_of(answer) / f"{max(at_ms, newest_ms + 1):015d}.jpg"
        with self._lock:
            self._write(path, image, answer)
            self._kept.append((path, _bytes(path)))
            self._held_bytes += self._kept[-1][1]
            if self._held_bytes > self._most_bytes:
                self._make_room()

    def feed(self, *, fps: float) -> ImageFolderFeed | CocoFeed:
        """What a workload has to say to read these frames; a detector's annotations are written for it now, and follow
        what is kept from then on. StoreError where the disk does not let it."""
        if not self._detects:
            return ImageFolderFeed(kind="image_folder", path=str(self._folder), fps=fps)
        with self._lock:
            self._annotate(path for path, _ in self._kept)
        annotations = self._folder / _ANNOTATIONS
        return CocoFeed(
            kind="coco", images=str(self._folder / "images"), annotations=str(annotations), fps=fps
        )  # fmt: skip

    def _places(self) -> list[Path]:
        if self._detects:
            return [self._folder / "images"]
        for name in self._model.classes:
            if Path(name).name != name or name in (".", "..") or "\0" in name:
                raise InputError(
                    f"class {name!r} cannot be the name of a folder, so its frames are not kept; rename it"
                )
        return [self._folder / name for name in self._model.classes]

    def _place_of(self, answer: Answer) -> Path:
        return self._folder / (answer.label if isinstance(answer, Classified) else "images")

    def _leftovers(self) -> list[Path]:
        """What a process that died while it wrote has left."""
        half = [*self._folder.glob(".writing-*"), *self._folder.glob("*/.writing-*")]
        boxes = self._folder.glob(f"*/*{_BOXES}")
        return half + [path for path in boxes if not path.with_name(path.name.replace(_BOXES, ".jpg")).exists()]

    def _write(self, path: Path, image: Image, answer: Answer) -> None:
        """Boxes before the picture that they belong to: a picture that is there is complete."""
        encoded = io.BytesIO()
        PIL.Image.fromarray(image).save(encoded, "JPEG", quality=_QUALITY, subsampling=0)
        boxes = path.with_suffix(_BOXES)
        try:
            if not isinstance(answer, Classified):
                known = [[box.label, box.x, box.y, box.width, box.height] for box in answer.boxes]
                document = {"size": [image.shape[1], image.shape[0]], "boxes": known}
                self._files.write(self._name(boxes), json.dumps(document).encode())
            self._files.write(self._name(path), encoded.getvalue())
        except StoreError:
            boxes.unlink(missing_ok=True)
            raise

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder))

    def _make_room(self) -> None:
        """The oldest go. Annotations that were written never name what is not there: they are written anew first."""
        is_annotated = self._detects and self._files.exists(_ANNOTATIONS)
        going = self._oldest(_ROOM_FRACTION if is_annotated else 0.0)
        if is_annotated:
            self._annotate_or_not(path for path, _ in list(self._kept)[len(going) :])
        for path in going:
            self._held_bytes -= self._kept.popleft()[1]
            path.unlink(missing_ok=True)
            path.with_suffix(_BOXES).unlink(missing_ok=True)

    def _oldest(self, room_fraction: float) -> list[Path]:
        """As many as must go for the rest to fit, with some room to spare."""
        left_bytes, most_bytes = self._held_bytes, self._most_bytes * (1 - room_fraction)
        going: list[Path] = []
        for path, held in self._kept:
            if left_bytes <= most_bytes:
                break
            left_bytes -= held
            going.append(path)
        return going

    def _annotate_or_not(self, paths: Iterable[Path]) -> None:
        """On a full disk there are no annotations rather than some that name what is gone."""
        try:
            self._annotate(paths)
        except StoreError:
            self._files.delete([_ANNOTATIONS])

    def _annotate(self, paths: Iterable[Path]) -> None:
        self._files.write(_ANNOTATIONS, json.dumps(self._annotations(paths)).encode())

    def _annotations(self, paths: Iterable[Path]) -> dict[str, object]:
        """In COCO's form. Frames answered in other words, by a model that was here before, are left out."""
        classes = {name: number for number, name in enumerate(self._model.classes) if number}
        known = [(path, found) for path in paths if (found := _boxes_of(path))]
        ours = [(path, found) for path, found in known if all(label in classes for label, *_ in found["boxes"])]
        images = [
            {"id": number, "file_name": path.name, "width": found["size"][0], "height": found["size"][1]}
            for number, (path, found) in enumerate(ours)
        ]
        boxes = [(number, box) for number, (_, found) in enumerate(ours) for box in found["boxes"]]
        annotations: list[dict[str, Any]] = [
            {"id": at, "image_id": number, "category_id": classes[label], "bbox": place, "iscrowd": 0}
            for at, (number, (label, *place)) in enumerate(boxes)
        ]
        categories = [{"id": number, "name": name} for name, number in classes.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def _boxes_of(path: Path) -> dict[str, Any] | None:
    """What the original found in a frame; None where that is lost."""
    try:
        return dict(json.loads(path.with_suffix(_BOXES).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _bytes(path: Path) -> int:
    boxes = path.with_suffix(_BOXES)
    return path.stat().st_size + (boxes.stat().st_size if boxes.exists() else 0)

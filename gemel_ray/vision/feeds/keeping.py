"""A camera's frames written down as a feed of their own, within a number of bytes: the newest stay."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path

import PIL.Image

from gemel_ray.spec.answers import Answer, Classified
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.feeds import CocoFeed, ImageFolderFeed
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.feeds.frames import Image
from gemel_ray.vision.models import task_of

# What cameras send is compressed already; without loss, a tenth of the frames would fit.
_QUALITY = 95
_BOXES = ".boxes.json"


class KeptFrames:
    """One query's frames with its original's answers, as an image folder (classifiers) or in COCO's form (detectors).

    For one thread of one process. A frame's name is the time it was kept, so that names sort by time.
    """

    def __init__(self, folder: str | Path, model: ModelSpec, *, most_bytes: int) -> None:
        """`folder` is made if absent. InputError for classes that cannot be folders, such as 'a/b'."""
        self._folder = Path(folder)
        self._model = model
        self._detects = task_of(model) == "detection"
        self._most_bytes = most_bytes
        for place in self._places():
            place.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob("*/*.part"):
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
        """Write a frame down with the original's answer; the oldest go. Raises OSError where the disk does not let it.

        `at_ms` is milliseconds since 1970; a clock that was set back does not make a frame older than those before.
        """
        newest_ms = int(self._kept[-1][0].stem) if self._kept else -1
        path = self._place_of(answer) / f"{max(at_ms, newest_ms + 1):015d}.jpg"
        PIL.Image.fromarray(image).save(path.with_suffix(".part"), "JPEG", quality=_QUALITY, subsampling=0)
        if not isinstance(answer, Classified):
            boxes = [[box.label, box.x, box.y, box.width, box.height] for box in answer.boxes]
            size = [image.shape[1], image.shape[0]]
            path.with_suffix(_BOXES).write_text(json.dumps({"size": size, "boxes": boxes}), encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)
        self._kept.append((path, _bytes(path)))
        self._held_bytes += self._kept[-1][1]
        while self._held_bytes > self._most_bytes:
            self._forget_oldest()

    def feed(self, *, fps: float) -> ImageFolderFeed | CocoFeed:
        """What a workload has to say to read these frames; a detector's annotations are written for it now."""
        if not self._detects:
            return ImageFolderFeed(kind="image_folder", path=str(self._folder), fps=fps)
        annotations = self._folder / "annotations.json"
        annotations.write_text(json.dumps(self._annotations()), encoding="utf-8")
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

    def _forget_oldest(self) -> None:
        path, held = self._kept.popleft()
        self._held_bytes -= held
        path.unlink(missing_ok=True)
        path.with_suffix(_BOXES).unlink(missing_ok=True)

    def _annotations(self) -> dict[str, object]:
        classes = {name: number for number, name in enumerate(self._model.classes) if number}
        images, annotations = [], []
        for number, (path, _) in enumerate(self._kept):
            known = json.loads(path.with_suffix(_BOXES).read_text(encoding="utf-8"))
            width, height = known["size"]
            images.append({"id": number, "file_name": path.name, "width": width, "height": height})
            annotations += [
                {"id": None, "image_id": number, "category_id": classes[label], "bbox": place, "iscrowd": 0}
                for label, *place in known["boxes"]
            ]
        categories = [{"id": number, "name": name} for name, number in classes.items()]
        numbered = [annotation | {"id": number} for number, annotation in enumerate(annotations)]
        return {"images": images, "annotations": numbered, "categories": categories}


def _bytes(path: Path) -> int:
    boxes = path.with_suffix(_BOXES)
    return path.stat().st_size + (boxes.stat().st_size if boxes.exists() else 0)

"""The kinds of feed (camera) a workload may name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemel_ray.spec.strict import NotBoolean, Strict

PositiveInt = Annotated[int, Field(gt=0), NotBoolean]
Fraction = Annotated[float, Field(ge=0, le=1), NotBoolean]
Fps = Annotated[float, Field(gt=0, le=1000), NotBoolean]
# Pillow's modes of pictures that are taken, by feeds and by services alike: eight bits a channel; sixteen-bit and
# floating-point pictures would be clipped, not scaled.
PICTURE_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


class StreetsFeed(Strict):
    """A procedural street camera: labelled frames, the same for the same seed."""

    kind: Literal["streets"]
    seed: Annotated[int, Field(ge=0, lt=2**63), NotBoolean] = 0
    frames: PositiveInt = 2000
    fps: Fps = 10
    width: Annotated[int, Field(ge=32, le=1920), NotBoolean] = 64
    height: Annotated[int, Field(ge=32, le=1080), NotBoolean] = 64
    # Mean number of road users in view; 0.7 leaves about half of the frames empty.
    traffic: Annotated[float, Field(gt=0, le=20), NotBoolean] = 0.7
    # 0 = day throughout, 1 = dusk at the last frame.
    dusk: Fraction = 0.0


class VideoFeed(Strict):
    """A video file, a folder of them or a stream (rtsp://, http://). ${NAME} in a URI comes from the environment."""

    kind: Literal["video"]
    uri: Annotated[str, Field(min_length=1)]
    # Frames are picked to come close to this rate; None keeps the source's own.
    fps: Fps | None = None
    # Stop after so many frames; a live stream, which never ends, must say it.
    frames: PositiveInt | None = None


class ImageFolderFeed(Strict):
    """A folder with one sub-folder of images for each class name."""

    kind: Literal["image_folder"]
    path: str
    fps: Fps = 10


class TilesFeed(Strict):
    """A camera folder with frames/, meta.json and tiles.jsonl: is the target in this tile?"""

    kind: Literal["tiles"]
    path: str
    fps: Fps = 10


class CocoFeed(Strict):
    """Images with boxes in a COCO annotation file."""

    kind: Literal["coco"]
    images: str
    annotations: str
    fps: Fps = 10


FeedSpec = Annotated[
    StreetsFeed | VideoFeed | ImageFolderFeed | TilesFeed | CocoFeed,
    Field(discriminator="kind"),
]

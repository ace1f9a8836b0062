"""What counts as a frame."""

from __future__ import annotations

import numpy as np

from gemel_ray.spec.errors import FrameError
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.models import task_of
from gemel_ray.vision.tasks import Image

# 8K video; larger frames are refused before they take memory.
MOST_PIXELS = 7680 * 4320

# torchvision's detectors scale a frame until its longer side is within `max_size` (1333 by default, 160 in ours), and
# fail where that leaves nothing of the shorter one. At 40 to 1, two pixels are left even with a `max_size` of 80.
MOST_ELONGATED = 40


def check_frame(image: object) -> Image:
    """The frame itself, copied only where its rows are not laid out plainly (a flipped view, say).

    Raises FrameError unless it is uint8, height x width x 3 and of a sensible size.
    """
    if not isinstance(image, np.ndarray):
        raise FrameError(f"a frame is a numpy array of uint8, height x width x 3; got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise FrameError(f"a frame is uint8 of shape (height, width, 3), RGB; got {image.dtype} of shape {image.shape}")
    height, width = image.shape[:2]
    if not 0 < height * width <= MOST_PIXELS:
        raise FrameError(f"a frame has 1 to {MOST_PIXELS} pixels; got {height} x {width}; scale it down")
    return np.ascontiguousarray(image)


def check_proportions(image: Image, model: ModelSpec) -> None:
    """Raise FrameError for a frame of which a detector would see nothing; classifiers take frames of any form."""
    height, width = image.shape[:2]
    if max(height, width) > MOST_ELONGATED * min(height, width) and task_of(model) == "detection":
        raise FrameError(
            f"a detector's frame is at most {MOST_ELONGATED} times as long as it is wide, since it is scaled by its "
            f"longer side; got {height} x {width}; send a part of it"
        )

"""What counts as a frame."""

from __future__ import annotations

import numpy as np

from gemel_ray.spec.errors import FrameError
from gemel_ray.vision.tasks import Image

# 8K video; larger frames are refused before they take memory.
MOST_PIXELS = 7680 * 4320


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

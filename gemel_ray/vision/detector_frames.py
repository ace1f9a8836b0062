"""How frames become a detector's input: made smaller before they are made float.

torchvision's detectors resize frames by themselves, from float ones: a 4K frame is 285 MiB of workspace to a model that
looks at 320 x 320 pixels of it, and how much memory an inference takes would hang on the camera. Here it does not, and
answers are the same but for rounding, with the weights of whoever trained them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

Target = dict[str, torch.Tensor]


def take_frames(model: nn.Module) -> None:
    """Let a detector take frames of uint8, 3 x H x W, as well as torchvision's floats in 0..1."""
    own: Any = getattr(model, "transform", None)
    if type(own) is GeneralizedRCNNTransform:
        model.transform = FrameTransform(
            own.min_size, own.max_size, own.image_mean, own.image_std, own.size_divisible, own.fixed_size
        )
    else:
        # A detector of somebody's own, which sees what it always saw.
        receiver = own if isinstance(own, GeneralizedRCNNTransform) else model
        receiver.register_forward_pre_hook(_as_floats)


class FrameTransform(GeneralizedRCNNTransform):
    """torchvision's own, and boxes in the coordinates of the frame that came in as ever."""

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """Frames of uint8 once they are small."""
        return image if image.dtype == torch.uint8 else super().normalize(image)

    def resize(self, image: torch.Tensor, target: Target | None = None) -> tuple[torch.Tensor, Target | None]:
        """As torchvision's; where that makes a frame larger, it does so itself."""
        if image.dtype != torch.uint8:
            return super().resize(image, target)
        small = shrunk(image, self._size(*image.shape[-2:]))
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], image.shape[-2:], small.shape[-2:])
        return super().resize(super().normalize(small), target)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """What torchvision resizes a frame of that size to, or less where that is more."""
        if self.fixed_size is not None:
            return min(height, self.fixed_size[1]), min(width, self.fixed_size[0])
        # While training torchvision draws one of several.
        least, most = max(self.min_size) if self.training else self.min_size[-1], self.max_size
        short, long = sorted((height, width))
        # In whole numbers, so that torchvision finds nothing left to do.
        if least * long <= most * short:
            short, long = min(short, least), min(long, max(least * long // short, 1))
        else:
            short, long = min(short, max(most * short // long, 1)), min(long, most)
        return (short, long) if height <= width else (long, short)


def shrunk(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A frame 3 x H x W of uint8, bilinear as torchvision's detectors resize; float in 0..1.

    A few rows at a time, which takes memory for the pixels that are left over, whatever the frame's size.
    """
    height, width = frame.shape[-2:]
    if size == (height, width):
        return frame.float().div_(255)
    top, bottom, down = _neighbours(height, size[0], frame.device)
    # As they lie in memory, so that whole rows are copied.
    pixels, small = frame.permute(1, 2, 0), torch.empty((3, *size), device=frame.device)
    at_once = max(size[0] * size[1] // width, 1)
    for begin in range(0, size[0], at_once):
        some = slice(begin, begin + at_once)
        rows = pixels.index_select(0, top[some]).float()
        rows.lerp_(pixels.index_select(0, bottom[some]).float(), down[some, None, None])
        wanted = (len(rows), size[1])
        small[:, some] = interpolate(rows.permute(2, 0, 1)[None], wanted, mode="bilinear", align_corners=False)[0]
    return small.div_(255)


def _neighbours(many: int, few: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of few rows: the two of many around it, and how far it is from the first to the second."""
    at = ((torch.arange(few, device=device, dtype=torch.float32) + 0.5) * (many / few) - 0.5).clamp_(min=0)
    first = at.long().clamp_(max=many - 1)
    return first, (first + 1).clamp_(max=many - 1), at - first


def _as_floats(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = given
    return [image.float().div_(255) if image.dtype == torch.uint8 else image for image in images], *others

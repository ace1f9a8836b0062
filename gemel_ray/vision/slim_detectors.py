"""A detector small enough for a laptop's processor, on the backbone of the half-width ResNets.

torchvision's smallest detectors need about a second of processor time for a training step of eight frames and
thousands of such steps from a random start. This one is torchvision's FCOS (Tian et al., ICCV 2019) with a narrow
pyramid: 12.5 MiB, and its body has the layers of a `resnet18_half` classifier, so that the two can share them.
"""

from __future__ import annotations

from typing import Any

from torchvision.models import ResNet
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from gemel_ray.vision.slim import resnet18_half, resnet18_quarter

_PYRAMID_CHANNELS = 64
# Pixels an object's side is measured in at each level, twice the level's stride: a nearby object of a small frame is
# then found on the finest level, by more places than its innermost.
_SIDES = (16, 32, 64, 128)


def fcos_resnet18_half(*, num_classes: int = 91, **options: Any) -> FCOS:  # noqa: ANN401 - torchvision's are typed so
    """FCOS on ResNet18 with 32, 64, 128 and 256 channels; frames are resized to sides of 96 to 160 pixels.

    Options are those of torchvision's FCOS, such as `min_size` and `max_size`.
    """
    return _fcos(resnet18_half(), 32, num_classes, options)


def fcos_resnet18_quarter(*, num_classes: int = 91, **options: Any) -> FCOS:  # noqa: ANN401
    """The same with 16, 32, 64 and 128 channels: what a larger one is distilled into."""
    return _fcos(resnet18_quarter(), 16, num_classes, options)


def _fcos(body: ResNet, first: int, num_classes: int, options: dict[str, Any]) -> FCOS:
    """On a body whose first stage has `first` channels."""
    stages = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(body, stages, [2 * first, 4 * first, 8 * first], _PYRAMID_CHANNELS)
    anchors = AnchorGenerator(tuple((side,) for side in _SIDES), ((1.0,),) * len(_SIDES))
    return FCOS(backbone, num_classes, anchor_generator=anchors, **({"min_size": 96, "max_size": 160} | options))


SLIM_DETECTORS = {"fcos_resnet18_half": fcos_resnet18_half, "fcos_resnet18_quarter": fcos_resnet18_quarter}

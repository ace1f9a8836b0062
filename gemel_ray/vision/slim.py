"""Slim ResNets: torchvision's residual networks with half or a quarter of the channels.

Full-width ResNets train too slowly on a laptop's processor; these take a quarter of the bytes (resnet18_half:
10.7 MiB) and keep the architecture, its layer names and its difficulties.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


def resnet18_half(**options: Any) -> ResNet:  # noqa: ANN401 - torchvision's builders are typed so
    """ResNet18 with 32, 64, 128 and 256 channels."""
    return _slim(32, (2, 2, 2, 2), **options)


def resnet34_half(**options: Any) -> ResNet:  # noqa: ANN401
    """ResNet34 with 32, 64, 128 and 256 channels."""
    return _slim(32, (3, 4, 6, 3), **options)


def resnet18_quarter(**options: Any) -> ResNet:  # noqa: ANN401
    """ResNet18 with 16, 32, 64 and 128 channels: what a larger one is distilled into (2.7 MiB)."""
    return _slim(16, (2, 2, 2, 2), **options)


def _slim(first: int, depths: tuple[int, ...], *, num_classes: int = 1000) -> ResNet:
    """Build a one-block-per-stage ResNet for its forward pass, then give it stages that begin with `first` channels."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, first, kernel_size=7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(first)
    channels = first
    for stage, depth in enumerate(depths):
        width = first * 2**stage
        setattr(model, f"layer{stage + 1}", _stage(channels, width, depth, stride=1 if stage == 0 else 2))
        channels = width
    model.fc = nn.Linear(channels, num_classes)
    _initialise(model)
    return model


def _stage(channels: int, width: int, depth: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride, _shortcut(channels, width, stride))
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1)))


def _shortcut(channels: int, width: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(width))


def _initialise(model: nn.Module) -> None:
    """The initialisation torchvision gives its ResNets."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


SLIM_BUILDERS = {"resnet18_half": resnet18_half, "resnet34_half": resnet34_half, "resnet18_quarter": resnet18_quarter}

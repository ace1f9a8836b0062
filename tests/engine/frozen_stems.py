"""Models fine-tuned from one ancestor whose first layers were frozen, normalisation and all."""

import torch
from torchvision.models import mobilenet_v3_small, resnet18


def resnet(num_classes, frozen="conv1 bn1 layer1"):
    """A resnet18 with weights and statistics of its own, except in what was frozen."""
    return _frozen(resnet18(num_classes=num_classes), frozen)


def mobilenet(num_classes, frozen="features.0 features.1 features.2 features.3"):
    """A small mobilenet, likewise: it computes in place and branches."""
    return _frozen(mobilenet_v3_small(num_classes=num_classes), frozen)


def _frozen(model, paths):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            _draw(module, None)
    generator = torch.Generator().manual_seed(5)
    for path in paths.split():
        for module in model.get_submodule(path).modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=0.1, generator=generator)
            elif isinstance(module, torch.nn.BatchNorm2d):
                _draw(module, generator)
    return model


def _draw(norm, generator):
    norm.running_mean.normal_(0, 0.1, generator=generator)
    norm.running_var.uniform_(0.5, 1.5, generator=generator)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
    torch.nn.init.normal_(norm.bias, std=0.1, generator=generator)

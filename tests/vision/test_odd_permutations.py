"""Models whose modules or tensors stand at several places of the graph: their answers survive permuting too."""

import copy

import pytest
import torch
from test_alignment import shuffled
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.vision.alignment import align
from gemel_ray.vision.permutations import permutable_spaces


class Small(nn.Module):
    """Two convolutions of eight channels, and what comes between them and the answer."""

    def __init__(self, **more):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 2)
        for name, module in more.items():
            self.add_module(name, module)

    def forward(self, images):
        return self.last(self.maps(images).mean([2, 3]))


class SharedHead(Small):
    def __init__(self):
        super().__init__(other=nn.Conv2d(3, 8, 3, padding=1))

    def maps(self, images):
        return self.second(self.first(images).relu()) * self.second(self.other(images).relu())


class Recurrent(Small):
    def maps(self, images):
        maps = self.first(images)
        for _ in range(3):
            maps = self.second(maps.relu())
        return maps


class SharedNorm(Small):
    def __init__(self):
        super().__init__(norm=nn.BatchNorm2d(8))

    def maps(self, images):
        return self.norm(self.second(self.norm(self.first(images)).relu())).relu()


class TiedWeights(Small):
    def __init__(self):
        super().__init__(third=nn.Conv2d(8, 8, 3, padding=1))
        self.third.weight = self.second.weight

    def maps(self, images):
        return self.third(self.second(self.first(images).relu()).relu())


class TwoNames(Small):
    def __init__(self):
        super().__init__()
        self.same = self.second

    def maps(self, images):
        return self.same(self.first(images).relu()).relu()


class OnPlaces(Small):
    """A Linear over the last dimension of a feature map, which is as wide as the map has channels."""

    def __init__(self):
        super().__init__(across=nn.Linear(8, 8))

    def maps(self, images):
        return self.second(self.across(self.first(images).relu()).relu())


class Borrowed(Small):
    def maps(self, images):
        maps = self.second(self.first(images).relu())
        return nn.functional.conv2d(maps, self.second.weight.flip(1), padding=1)


class Normalised(Small):
    def __init__(self):
        super().__init__()
        self.second = weight_norm(self.second)

    def maps(self, images):
        return self.second(self.first(images).relu()).relu()


class FlatNorm(nn.Sequential):
    def __init__(self):
        body = [nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Flatten()]
        super().__init__(*body, nn.BatchNorm1d(8 * 4), nn.Linear(8 * 4, 2))


def build(kind, seed):
    torch.manual_seed(seed)
    model = kind()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 2)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


def answers(model):
    torch.manual_seed(7)
    with torch.no_grad():
        return model(torch.randn(4, 3, 8, 8))


# With how many spaces are left to permute.
@pytest.mark.parametrize(
    ("kind", "spaces"),
    [
        (SharedHead, 2), (Recurrent, 1), (SharedNorm, 1), (TiedWeights, 1), (TwoNames, 2), (OnPlaces, 1),
        (Borrowed, 0), (Normalised, 0), (FlatNorm, 1),
    ],
)  # fmt: skip
def test_answers_stay_when_channels_change_places_or_are_aligned(kind, spaces):
    model, other = build(kind, 0), build(kind, 1)
    assert len(permutable_spaces(model)) == spaces
    torch.testing.assert_close(answers(shuffled(copy.deepcopy(model))), answers(model))
    before = [answers(model), answers(other)]
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    members = [(LayerRef("a", layer), LayerRef("b", layer)) for layer in layers if kind is not Normalised]
    align(
        {"a": model, "b": other},
        MergeConfiguration(shared=tuple(SharedLayer(signature="s", layer_bytes=1, members=each) for each in members)),
    )
    torch.testing.assert_close([answers(model), answers(other)], before)

"""First layers that were equal before a merge are equal after it, so that the engine may compute them once."""

import copy

import numpy as np
import torch

from gemel_ray.spec.workload import ModelSpec
from gemel_ray.training.data import SplitData
from gemel_ray.training.normalisation import reestimate_normalisation
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import task_for

SPEC = ModelSpec(architecture="resnet18", classes=("background", "car"), input_size=32)
STEM = ("conv1", "bn1", "layer1")


def test_statistics_of_equal_layers_are_reestimated_alike_on_one_feed():
    torch.manual_seed(0)
    one = build_model(SPEC)
    other = copy.deepcopy(one)
    for path in ("layer2", "layer3", "layer4"):
        for module in other.get_submodule(path).modules():
            if isinstance(module, torch.nn.Conv2d):
                module.reset_parameters()
    frames = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    data = SplitData(frames, np.zeros(len(frames), dtype=np.int64))
    before = one.bn1.running_mean.clone()
    for model in (one, other):
        reestimate_normalisation(model, task_for(SPEC), data, seed=3, batches=2)
    assert not torch.equal(one.bn1.running_mean, before)
    for path in STEM:
        mine, theirs = one.get_submodule(path).state_dict(), other.get_submodule(path).state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(one.layer4[1].bn2.running_mean, other.layer4[1].bn2.running_mean)

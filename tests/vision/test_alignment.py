"""Channels change places and no answer changes; models that differ by such an order alone become equal."""

import copy

import numpy as np
import pytest
import torch
import torchvision

from gemel_ray.policy.grouping import group_layers, group_repeats
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.vision.alignment import align, permuted
from gemel_ray.vision.binding import bind
from gemel_ray.vision.checkpoints import put_state
from gemel_ray.vision.inspection import inspect_model
from gemel_ray.vision.permutations import permutable_spaces
from gemel_ray.vision.slim import SLIM_BUILDERS

# Architecture, and the least share of its parameters that lie along channels which may move.
_FAMILIES = {
    "resnet18_half": 0.99,
    "mobilenet_v3_small": 0.99,
    "squeezenet1_1": 0.95,
    "densenet121": 0.8,
    "shufflenet_v2_x0_5": 0.9,
    "mnasnet0_5": 0.99,
}


def build(name, seed=0, classes=3):
    torch.manual_seed(seed)
    if name in SLIM_BUILDERS:
        model = SLIM_BUILDERS[name](num_classes=classes)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


@torch.no_grad()
def shuffled(model, seed=0):
    """The same function, its channels in another order."""
    other, rng = copy.deepcopy(model), np.random.default_rng(seed)
    # Apart, since a tensor may have two names.
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for space in permutable_spaces(model):
        order = rng.permutation(space.size)
        for axis in space.axes:
            state[axis.tensor] = permuted(state[axis.tensor], axis, order)
    put_state(other, state)
    return other


def answers(model, seed=7):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(torch.randn(2, 3, 64, 64))


def across(**models):
    return MergeConfiguration.of(group_layers([inspect_model(q, m, builder=q) for q, m in models.items()]))


@pytest.mark.parametrize("name", _FAMILIES)
def test_channels_change_places_and_answers_do_not(name):
    model = build(name)
    other = shuffled(model)
    torch.testing.assert_close(answers(other), answers(model), rtol=1e-4, atol=1e-5)
    moved = {axis.tensor for space in permutable_spaces(model) for axis in space.axes}
    share = sum(p.numel() for n, p in model.named_parameters() if n in moved) / sum(
        p.numel() for p in model.parameters()
    )
    assert share >= _FAMILIES[name]
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, other.get_parameter(n))]
    assert changed, "nothing was shuffled, so the test says nothing"


def test_flattened_feature_maps_move_with_their_channels():
    torch.manual_seed(0)
    body = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()]
    model = torch.nn.Sequential(*body, torch.nn.Linear(32, 3))
    (space,) = permutable_spaces(model)
    assert (space.size, space.axes[-1].repeat) == (8, 4)
    torch.testing.assert_close(answers(shuffled(model)), answers(model))
    assert permutable_spaces(torch.nn.Sequential(*body[:-1], torch.nn.Flatten(2), torch.nn.Linear(4, 3))) == ()


def test_an_order_of_channels_is_found_again():
    model = build("resnet18_half")
    other = shuffled(model)
    before = answers(other)
    align({"a": model, "b": other}, across(a=model, b=other))
    torch.testing.assert_close(answers(other), before, rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter)


def test_the_orders_of_several_models_are_found_again():
    model = build("resnet18_half")
    models = {"a": model} | {query: shuffled(model, seed) for seed, query in enumerate("bcd")}
    align(models, across(**models))
    for query in "bcd":
        for name, parameter in models["a"].named_parameters():
            torch.testing.assert_close(models[query].get_parameter(name), parameter)


def test_copies_stay_as_they_are():
    model = build("resnet18_half")
    other, state = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    align({"a": model, "b": other}, across(a=model, b=other))
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_strangers_of_two_architectures_come_nearer_and_answer_as_before():
    models = {"a": build("resnet18_half", 1), "b": build("resnet34_half", 2), "c": build("resnet18_half", 3)}
    configuration = MergeConfiguration.of(group_repeats([inspect_model(q, m, builder=q) for q, m in models.items()]))
    before = {query: answers(model) for query, model in models.items()}
    norms = distances(models)
    align(models, configuration)
    for query, model in models.items():
        torch.testing.assert_close(answers(model), before[query], rtol=1e-4, atol=1e-5)
    assert distances(models) < norms


def distances(models):
    """How far the second model's layers lie from the first's."""
    one, other = models["a"], models["c"]
    return sum(
        float((p - other.get_parameter(n)).detach().square().sum()) for n, p in one.named_parameters() if p.dim() == 4
    )


def test_what_shares_weights_already_moves_together():
    models = {"a": build("resnet18_half", 1), "b": build("resnet18_half", 2), "c": build("resnet18_half", 3)}
    shared = across(a=models["a"], b=models["b"])
    bind({name: models[name] for name in ("a", "b")}, shared)
    loaded = {name: copy.deepcopy(model) for name, model in models.items()}
    before = {name: answers(model) for name, model in loaded.items()}
    align(loaded, across(**loaded), tied=shared)
    for name, model in loaded.items():
        torch.testing.assert_close(answers(model), before[name], rtol=1e-4, atol=1e-5)
    for layer in shared.shared:
        one, other = (loaded[member.query].get_submodule(member.layer).weight for member in layer.members)
        assert torch.equal(one, other)


def test_what_other_models_share_does_not_matter():
    """A trial holds the models of its own set alone, its release all that was ever merged."""
    others = {"x": build("mobilenet_v3_small", 4), "y": build("mobilenet_v3_small", 5)}
    models = {"a": build("resnet18_half", 1), "b": build("resnet18_half", 2)}
    same = copy.deepcopy(models)
    wanted = across(**models)
    align(models, wanted, tied=across(**others))
    align(same, wanted)
    assert all(torch.equal(models[q].conv1.weight, same[q].conv1.weight) for q in models)


def test_a_model_that_cannot_be_traced_is_left_alone():
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    assert permutable_spaces(Branching()) == ()


def test_corrections_move_with_the_channels_that_they_correct():
    models = {name: build("resnet18_half", seed) for seed, name in enumerate("abc")}
    every = across(**models)
    layer = next(each for each in every.shared if each.members[0].layer == "layer2.0.conv1")
    tied = MergeConfiguration(shared=(layer.among(layer.members[:2]).corrected(8),))
    bind(models, tied)
    before = {name: answers(model) for name, model in models.items()}
    weights = models["a"].layer2[0].conv1.delta_up.weight.clone()
    align(models, every, tied=tied)
    assert not torch.equal(models["a"].layer2[0].conv1.delta_up.weight, weights), "nothing moved"
    for name, model in models.items():
        torch.testing.assert_close(answers(model), before[name], rtol=1e-4, atol=1e-5)

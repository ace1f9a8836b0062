"""Slices: a smaller layer over the first rows and columns of a larger one's memory, from binding to training."""

import copy

import pytest
import torch
from torch.nn import functional

from gemel_ray.policy.grouping import group_slices
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.vision.alignment import align
from gemel_ray.vision.binding import bind, distinct_bytes, distinct_parameters, gather_gradients, slices_of
from gemel_ray.vision.inspection import inspect_model


def net(seed, wide=4):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, wide, 3, bias=False), torch.nn.BatchNorm2d(wide), torch.nn.ReLU(),
        torch.nn.Conv2d(wide, 2 * wide, 3, bias=False), torch.nn.BatchNorm2d(2 * wide),
    )  # fmt: skip


@pytest.fixture
def models():
    return {"large": net(1), "small": net(2, wide=2)}


def sliced(models):
    return MergeConfiguration.of(group_slices([inspect_model(q, m, builder=q) for q, m in models.items()]))


def test_all_convolutions_of_both_models_become_slices_of_the_largest(models):
    configuration = sliced(models)
    assert [len(layer.members) for layer in configuration.shared] == [4]
    alone = distinct_bytes(models.values())
    bind(models, configuration)
    assert alone - distinct_bytes(models.values()) == configuration.saved_bytes == 4 * 9 * (4 * 2 + 2 * 2 + 4 * 2)
    whole = models["large"][3].weight
    for module in (models["large"][0], models["small"][0], models["small"][3]):
        assert module.weight.data_ptr() == whole.data_ptr()
        assert torch.equal(module.weight, whole[: module.weight.shape[0], : module.weight.shape[1]])


def test_each_entry_starts_at_the_mean_of_those_that_have_it(models):
    before = copy.deepcopy(models)
    bind(models, sliced(models))
    whole = models["large"][3].weight
    first = [before[q][place].weight[:2, :2] for q in before for place in (0, 3)]
    assert torch.allclose(whole[:2, :2], torch.stack(first).mean(dim=0))
    assert torch.equal(whole[4:, :], before["large"][3].weight[4:, :])


def test_a_slices_gradient_is_its_part_of_the_wholes(models):
    bind(models, sliced(models))
    images, whole = torch.randn(5, 2, 9, 9), models["large"][3].weight
    slices = slices_of(models.values())
    sum(model(images).square().sum() for model in models.values()).backward()
    gather_gradients(slices)
    found, whole.grad = whole.grad, None

    def computed(weight, model):
        first = functional.conv2d(images, weight[: model[0].out_channels, :2])
        second = weight[: model[3].out_channels, : model[3].in_channels]
        return model[4](functional.conv2d(torch.relu(model[1](first)), second)).square().sum()

    sum(computed(whole, model) for model in models.values()).backward()
    assert torch.allclose(found, whole.grad, rtol=1e-4, atol=1e-5)
    assert all(part.grad is None for part, _ in slices)


def test_slices_stay_slices_through_training_saving_and_loading(models):
    bind(models, sliced(models))
    parameters, slices = distinct_parameters(models.values()), slices_of(models.values())
    assert len({p.data_ptr() for p in parameters}) == len(parameters)
    assert [part.shape for part, _ in slices] == [(4, 2, 3, 3), (2, 2, 3, 3)]
    optimiser, before = torch.optim.AdamW(parameters), models["small"][0].weight.detach().clone()
    sum(model(torch.randn(5, 2, 9, 9)).square().sum() for model in models.values()).backward()
    gather_gradients(slices)
    optimiser.step()
    assert not torch.equal(models["small"][0].weight, before)
    state = {name: tensor.clone() for name, tensor in models["small"].state_dict().items()}
    models["small"].load_state_dict(state)
    whole = models["large"][3].weight
    assert models["small"][3].weight.data_ptr() == whole.data_ptr()
    assert torch.equal(models["small"][3].weight, whole[:4, :2])


def test_binding_anew_after_loading_keeps_what_was_shared(models):
    configuration = sliced(models)
    bind(models, configuration)
    apart = {query: net(9, wide=2 if query == "small" else 4) for query in models}
    for query, model in apart.items():
        model.load_state_dict(models[query].state_dict())
    bind(apart, configuration)
    assert torch.allclose(apart["large"][3].weight, models["large"][3].weight)
    assert apart["small"][0].weight.data_ptr() == apart["large"][3].weight.data_ptr()


def test_alignment_compares_layers_of_one_size_and_leaves_slices_where_they_are(models):
    configuration = sliced(models)
    wide = models | {"other": net(3)}
    images = torch.randn(2, 2, 9, 9)
    answers = {query: model.eval()(images) for query, model in wide.items()}
    align(wide, sliced(wide))
    assert all(torch.allclose(model(images), answers[query], atol=1e-5) for query, model in wide.items())
    bind(models, configuration)
    order = models["large"][3].weight.detach().clone()
    align(wide, sliced(wide), tied=configuration)
    assert torch.equal(models["large"][3].weight, order)

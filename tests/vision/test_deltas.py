"""Private corrections: what they compute, what they weigh, and that they travel with the weights."""

import copy

import pytest
import torch
from safetensors.torch import load, save

from gemel_ray.policy.grouping import group_layers
from gemel_ray.spec.errors import ModelError
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.vision.binding import bind, distinct_bytes
from gemel_ray.vision.checkpoints import put_state
from gemel_ray.vision.deltas import attach_deltas, correct, effective_weight, rank_bytes
from gemel_ray.vision.inspection import inspect_model
from gemel_ray.vision.slim import SLIM_BUILDERS

RANK = 4


def build(seed):
    torch.manual_seed(seed)
    return SLIM_BUILDERS["resnet18_half"](num_classes=3).eval()


def answers(model):
    torch.manual_seed(7)
    with torch.no_grad():
        return model(torch.randn(2, 3, 32, 32))


def corrected(**models):
    groups = group_layers([inspect_model(q, m, builder="resnet18_half") for q, m in models.items()])
    shared = MergeConfiguration.of(groups).shared
    return MergeConfiguration(shared=tuple(layer.corrected(RANK) or layer for layer in shared))


@pytest.mark.parametrize(
    "layer",
    [torch.nn.Conv2d(6, 10, 3, stride=2, padding=1), torch.nn.Conv2d(6, 10, 1), torch.nn.Linear(12, 9)],
    ids=["3x3 of stride 2", "1x1", "linear"],
)
def test_a_corrected_layer_computes_as_if_the_correction_were_part_of_its_weight(layer):
    torch.manual_seed(0)
    wanted = torch.randn_like(layer.weight)
    plain = copy.deepcopy(layer)
    before = torch.dist(layer.weight, wanted)
    correct(layer, wanted, 2)
    assert torch.dist(effective_weight(layer), wanted) < before
    with torch.no_grad():
        plain.weight.copy_(effective_weight(layer))
        picture = torch.randn(3, 12) if isinstance(layer, torch.nn.Linear) else torch.randn(2, 6, 9, 9)
        torch.testing.assert_close(layer(picture), plain(picture), rtol=1e-4, atol=1e-5)
    added = sum(p.numel() * 4 for name, p in layer.named_parameters() if name.startswith("delta"))
    assert added == 2 * rank_bytes(plain)


@pytest.mark.parametrize("rank", [6, 9])
def test_with_full_rank_or_more_than_that_nothing_is_lost(rank):
    torch.manual_seed(0)
    layer, wanted = torch.nn.Conv2d(4, 6, 3), torch.randn(6, 4, 3, 3)
    correct(layer, wanted, rank)
    torch.testing.assert_close(effective_weight(layer), wanted, rtol=1e-4, atol=1e-5)


def test_one_copy_is_shared_and_what_it_saves_is_what_was_promised():
    models = {"a": build(1), "b": build(2)}
    configuration = corrected(**models)
    before = distinct_bytes(models.values())
    bind(models, configuration)
    assert before - distinct_bytes(models.values()) == configuration.saved_bytes
    for layer in configuration.shared:
        one, other = (models[member.query].get_submodule(member.layer) for member in layer.members)
        assert one.weight is other.weight
        if layer.rank:
            assert one.delta_up.weight is not other.delta_up.weight


def test_corrections_survive_a_second_binding_and_a_file():
    models = {"a": build(1), "b": build(2)}
    configuration = corrected(**models)
    bind(models, configuration)
    merged = {name: answers(model) for name, model in models.items()}
    files = {name: save(dict(model.state_dict())) for name, model in models.items()}
    loaded = {name: build(9) for name in models}
    for name, model in loaded.items():
        put_state(model, load(files[name]))
        torch.testing.assert_close(answers(model), merged[name])
    bind(loaded, configuration)
    for name, model in loaded.items():
        torch.testing.assert_close(answers(model), merged[name], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_corrected_is_told():
    grouped = torch.nn.Conv2d(4, 4, 3, groups=4)
    assert rank_bytes(grouped) == 0
    layer = SharedLayer(signature="s", layer_bytes=64, members=(("a", "x"), ("b", "x")), rank_bytes=0)
    assert layer.corrected(4) is None
    heavy = layer.model_copy(update={"rank_bytes": 40})
    # Two corrections of rank 1 weigh more than the one copy that is spared.
    assert heavy.corrected(1) is None
    with pytest.raises(ModelError, match="no layer 'gone'"):
        attach_deltas(build(1), {"gone.delta_down.weight": (2, 3)})

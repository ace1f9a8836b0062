"""Evidence for the search: relatives by their weights, repeats by their shapes, sets that share nothing."""

import copy

import pytest
import torch

from gemel_ray.policy.grouping import group_layers, group_repeats, independent_sets
from gemel_ray.spec.answers import Box, Classified, Detected
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.costs import model_cost
from gemel_ray.vision.inspection import inspect_model
from gemel_ray.vision.models import build_model
from gemel_ray.vision.seen import end_to_end_accuracy
from gemel_ray.vision.similarity import relatives

SPEC = ModelSpec(architecture="resnet18_half", classes=("background", "car"), input_size=32)


@pytest.fixture(scope="module")
def models():
    """Two that descend from one ancestor, and two strangers, one of them of another depth."""
    torch.manual_seed(0)
    first = build_model(SPEC)
    descended = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in descended.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std(correction=0) * 0.3)
    deeper = build_model(SPEC.model_copy(update={"architecture": "resnet34_half"}))
    return {"a": first, "b": descended, "c": build_model(SPEC), "d": deeper}


def inventories(models):
    return [inspect_model(name, model, builder="") for name, model in models.items()]


def test_relatives_are_found_among_strangers_by_their_weights(models):
    groups = group_layers(inventories(models))
    alike = relatives(models, groups)
    assert {group.queries for group in alike} == {("a", "b")}
    assert len(alike) == len([group for group in groups if {"a", "b"} <= set(group.queries)])


def test_repeats_within_a_model_save_more_than_models_can_save_across(models):
    two = inventories({name: models[name] for name in "ac"})
    across, repeats = group_layers(two), group_repeats(two)
    assert sum(g.saved_bytes for g in repeats) > sum(g.saved_bytes for g in across)
    # Every layer that shares across models is in a group of repeats, too.
    assert {m for g in across for m in g.members} <= {m for g in repeats for m in g.members}
    assert len({m for g in repeats for m in g.members}) == sum(len(g.members) for g in repeats)


def test_models_that_share_nothing_are_separate_sets(models):
    other = build_model(ModelSpec(architecture="squeezenet1_1", classes=("background", "car"), input_size=32))
    groups = group_layers(inventories({**models, "e": other, "f": copy.deepcopy(other)}))
    assert independent_sets(groups) == (frozenset("abcd"), frozenset("ef"))


def test_costs_are_counted_without_weights_and_grow_with_the_model():
    small, large = (model_cost(SPEC.model_copy(update={"architecture": f"resnet{d}_half"})) for d in (18, 34))
    assert large.flops > 1.5 * small.flops > 0
    assert large.weight_bytes > 1.5 * small.weight_bytes
    # The first convolution alone: 32 x 3 x 7 x 7 multiply-adds at 16 x 16 places.
    assert small.flops > 2 * 32 * 3 * 7 * 7 * 16 * 16
    with pytest.raises(InputError, match="measure it with `gemel profile`"):
        model_cost(ModelSpec(architecture="fcos_resnet50_fpn", classes=("background", "car")))


def test_what_is_seen_before_the_first_answer_agrees_with_nothing():
    car, none = Classified("car", (0.1, 0.9)), Classified("background", (0.9, 0.1))
    assert end_to_end_accuracy([car, car, none, none], [None, car, none, none]) == 0.75
    assert end_to_end_accuracy([car, none], [car, none]) == 1.0
    box = Detected((Box("car", 0.9, 0, 0, 10, 10),))
    assert end_to_end_accuracy([box, box], [None, box]) == pytest.approx(2 / 3)

"""Models by the user's own factory: what is written as models usually are, and what cannot work."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from gemel_ray.policy.estimates import ModelCost
from gemel_ray.spec.errors import InputError, ModelError
from gemel_ray.spec.workload import ModelSpec, parse_workload
from gemel_ray.vision.checkpoints import fit_state
from gemel_ray.vision.costs import model_cost
from gemel_ray.vision.inspection import inspect_spec
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import DetectionTask, check_takes_frames

CLASSES = ("background", "car")


def net(num_classes, first=None):
    first = first or nn.Conv2d(3, 8, 3)
    return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def with_item(num_classes):
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 4)]
    return net(num_classes).append(nn.Dropout(rates[1]))


def with_numpy(num_classes):
    return net(num_classes).append(nn.Dropout(float(torch.linspace(0, 0.1, 4).numpy()[1])))


def with_condition(num_classes):
    assert torch.ones(3).sum() == 3
    return net(num_classes)


def moved(num_classes):
    return net(num_classes).to("cpu")


def tied(num_classes):
    model = net(num_classes).insert(1, nn.Conv2d(8, 8, 1)).insert(2, nn.Conv2d(8, 8, 1))
    model[2].weight = model[1].weight
    return model


def weight_normed(num_classes):
    return net(num_classes, weight_norm(nn.Conv2d(3, 8, 3)))


def spectral_normed(num_classes):
    return net(num_classes, spectral_norm(nn.Conv2d(3, 8, 3)))


def lazy(num_classes):
    return net(num_classes, nn.LazyConv2d(8, 3))


def of_five(num_classes):
    return net(5)


class Twice(nn.Sequential):
    def forward(self, images):
        answer = super().forward(images)
        return answer, answer


def twice(num_classes):
    return Twice(net(num_classes))


class Looking(nn.Sequential):
    def forward(self, images):
        return super().forward(images if images.mean() > 0 else -images)


def looking(num_classes):
    return Looking(net(num_classes))


def spec_of(name):
    return ModelSpec(factory=f"{__name__}:{name}", task="classification", classes=CLASSES, input_size=32)


def query_of(spec):
    queries = [{"name": "cars", "feed": "f", "model": spec.model_dump()}]
    data = {"name": "w", "feeds": {"f": {"kind": "streets"}}, "queries": queries}
    return parse_workload(data, source="w.yaml", base=Path()).queries[0]


@pytest.mark.parametrize("name", ["net", "with_item", "with_numpy", "with_condition", "moved"])
def test_what_factories_usually_do_is_no_hindrance_without_weights(name):
    kinds = [layer.kind for layer in inspect_spec("q", spec_of(name), allow_factories=True).layers]
    assert kinds == ["Conv2d", "Linear"]
    costs = [model_cost(spec_of(each), allow_factories=True) for each in (name, "net")]
    assert costs[0].flops == costs[1].flops > 0


def test_a_factory_is_imported_where_its_constants_have_values(tmp_path, monkeypatch):
    (tmp_path / "with_constants.py").write_text(
        "import torch\nSCALE = torch.ones(3)\ndef net(num_classes):\n    return torch.nn.Linear(3, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    inspect_spec(
        "q", ModelSpec(factory="with_constants:net", task="classification", classes=CLASSES), allow_factories=True
    )
    assert sys.modules["with_constants"].SCALE.sum() == 3


@pytest.mark.parametrize("name", ["weight_normed", "spectral_normed"])
def test_a_weight_that_is_computed_anew_is_private(name):
    found = inspect_spec("q", spec_of(name), allow_factories=True)
    assert [layer.path for layer in found.layers] == ["4"]
    assert found.other_bytes >= 8 * 3 * 3 * 3 * 4


def test_regnets_are_costed_though_they_cannot_be_built_on_the_meta_device():
    cost = model_cost(ModelSpec(architecture="regnet_y_400mf", classes=CLASSES, input_size=64))
    assert isinstance(cost, ModelCost)
    assert cost.flops > 2 * 4e8 * 64**2 / 224**2 / 2


def test_a_model_whose_cost_depends_on_values_is_told_with_the_way_out():
    with pytest.raises(InputError, match=r"looking: its cost cannot be counted without weights.*gemel profile"):
        model_cost(spec_of("looking"), allow_factories=True)


def test_a_lazy_layer_is_told_with_the_way_out():
    for build in (build_model, lambda spec, **more: inspect_spec("q", spec, **more)):
        with pytest.raises(ModelError, match=r"lazy: '0\.weight' has no shape before the model is called"):
            build(spec_of("lazy"), allow_factories=True)


@pytest.mark.parametrize(
    ("code", "told"), [("def net(:\n", "SyntaxError"), ("x = nowhere\n", "NameError"), ("exit(3)\n", "SystemExit")]
)
def test_a_module_that_cannot_be_imported_is_told(tmp_path, monkeypatch, code, told):
    (tmp_path / f"broken_{told.lower()}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    spec = ModelSpec(factory=f"broken_{told.lower()}:net", task="classification", classes=CLASSES)
    with pytest.raises(ModelError, match=rf"importing broken_{told.lower()} fails \({told}"):
        build_model(spec, allow_factories=True)


@pytest.mark.parametrize(("name", "found"), [("of_five", r"\(1, 5\)"), ("twice", "tuple")])
def test_a_model_that_answers_otherwise_than_by_a_number_for_each_class_is_refused(name, found):
    query = query_of(spec_of(name))
    with pytest.raises(ModelError, match=rf"query 'cars': .*:{name} answers a frame with {found}, not .* \(1, 2\)"):
        check_takes_frames(build_model(query.model, allow_factories=True), query)
    check_takes_frames(build_model(spec_of("net"), allow_factories=True), query)


def test_boxes_that_enclose_nothing_are_no_answer():
    places = [[0, 0, 4, 4], [4, 0, 0, 4], [2, 2, 2, 4], [0, 0, float("nan"), 4]]
    found = {"boxes": torch.tensor(places), "labels": torch.ones(4, dtype=torch.int64), "scores": torch.ones(4)}
    (answer,) = DetectionTask(CLASSES, 0.5).answers([found], [])
    assert [(box.x, box.width, box.height) for box in answer.boxes] == [(0, 4, 4)]


def test_text_for_a_number_is_refused_before_a_detector_finds_its_first_object():
    spec = ModelSpec(architecture="fcos_resnet18_half", classes=CLASSES, options={"nms_thresh": "x"})
    with pytest.raises(ModelError, match=r"fcos_resnet18_half: options: 'nms_thresh' must be a number, got 'x'"):
        inspect_spec("q", spec)


def test_a_checkpoint_may_hold_a_tied_weight_once():
    model, other = tied(2), tied(2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["2.weight"]
    fit_state(other, state, source="saved")
    assert torch.equal(other[2].weight, model[2].weight)
    with pytest.raises(ModelError, match=r"2 tensors are missing, first '1\.weight'"):
        fit_state(other, {name: tensor for name, tensor in state.items() if name != "1.weight"}, source="saved")

"""Models by name, layers without weights, the known values of the paper's architectures."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemel_ray.policy.grouping import heavy_hitters
from gemel_ray.spec.errors import ModelError
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.units import MIB
from gemel_ray.spec.workload import ModelSpec, parse_workload
from gemel_ray.vision.binding import bind, distinct_bytes, distinct_parameters
from gemel_ray.vision.checkpoints import fit_state, load_weights
from gemel_ray.vision.inspection import analyze, inspect_spec
from gemel_ray.vision.models import architectures, build_model, task_of
from gemel_ray.vision.tasks import check_takes_frames

CLASSES = ("background", "car")


def workload(*names):
    queries = [
        {"name": f"q{place}", "feed": "f", "model": {"architecture": name, "classes": list(CLASSES)}}
        for place, name in enumerate(names)
    ]
    data = {"name": "w", "feeds": {"f": {"kind": "streets"}}, "queries": queries}
    return parse_workload(data, source="w.yaml", base=Path())


@pytest.mark.parametrize(
    ("names", "total_mib", "shareable_mib"),
    [
        (("resnet18",) * 2, 85.20, 42.60),
        (("resnet50", "resnet101"), 251.23, 89.49),
        (("resnet18", "vgg16", "resnet50"), 644.29, 27.40),
        (("resnet50",) * 3, 268.47, 178.98),
        (("vgg16", "vgg16", "vgg19"), 1556.84, 1024.39),
    ],
)
def test_known_workloads_have_their_known_bytes(names, total_mib, shareable_mib):
    found = analyze(workload(*names))
    assert round(found.layer_bytes / MIB, 2) == total_mib
    assert round(found.shareable_bytes / MIB, 2) == shareable_mib


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's peak from /proc")
def test_fifty_full_size_models_are_analysed_without_allocating_their_weights():
    script = """
from test_models_and_layers import *
names = sorted(n for n in architectures("classification") if n.startswith(("vgg", "resnet", "wide", "vit", "convnext")))
found = analyze(workload(*(names * 3)[:50]))
assert len(found.inventories) == 50 and found.total_bytes > 8 * 2**30
# getrusage would count what the process that started this one held.
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    here = str(Path(__file__).parent)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=here)
    assert int(result.stdout) < 2 * 2**30


def test_groups_come_memory_forward_and_heads_of_different_classes_never_match():
    found = analyze(workload("resnet50", "resnet101"))
    savings = [group.saved_bytes for group in found.groups]
    assert savings == sorted(savings, reverse=True)
    odd = ModelSpec(architecture="resnet18", classes=("background", "car", "bus"))
    even = ModelSpec(architecture="resnet18", classes=CLASSES)
    one, other = inspect_spec("a", odd), inspect_spec("b", even)
    assert one.layers[-1].exact != other.layers[-1].exact
    assert one.layers[0].exact == other.layers[0].exact


def test_attention_projections_are_seen():
    kinds = [layer.kind for layer in inspect_spec("a", ModelSpec(architecture="vit_b_16", classes=CLASSES)).layers]
    assert kinds.count("MultiheadAttention") == 12


def test_shape_rule_ignores_stride():
    inventory = inspect_spec("a", ModelSpec(architecture="resnet50", classes=CLASSES))
    assert len({layer.shape for layer in inventory.layers}) < len({layer.exact for layer in inventory.layers})
    assert heavy_hitters(inventory)[0].path.startswith("layer4")  # the deepest stage is the heaviest


def test_every_architecture_can_be_inspected():
    failed = []
    for task in ("classification", "detection"):
        for name in sorted(architectures(task)):
            if not inspect_spec("q", ModelSpec(architecture=name, classes=CLASSES)).layers:
                failed.append(name)
    assert not failed


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(ModelError, match="did you mean 'resnet18"):
        task_of(ModelSpec(architecture="resnet18x", classes=CLASSES))


@pytest.mark.parametrize("name", ["resnet18", "resnet18_quarter"])
def test_a_task_that_the_architecture_is_not_for_is_refused_when_layers_are_read(name):
    with pytest.raises(ModelError, match=f"'{name}' is for classification, but task says 'detection'; drop 'task'"):
        inspect_spec("q", ModelSpec(architecture=name, classes=CLASSES, task="detection"))


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("vit_b_16", {"image_size": 7}, "AssertionError"),
        ("resnet50", {"width_per_group": -64}, "RuntimeError"),
        ("resnet50", {"width_per_group": 10**9}, "RuntimeError"),
        ("mobilenet_v2", {"round_nearest": 0}, "ZeroDivisionError"),
        ("resnet18", {"depth": 3}, "TypeError"),
    ],
)
def test_options_that_a_builder_cannot_follow_are_named_with_its_reason(name, options, why):
    with pytest.raises(ModelError) as error:
        inspect_spec("q", ModelSpec(architecture=name, classes=CLASSES, options=options))
    assert f"{name}: cannot be built with options {options} (" in str(error.value)
    assert why in str(error.value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_options_that_leave_a_layer_empty_are_refused():
    with pytest.raises(ModelError, match=r"\{'width_per_group': 0\} leave 'layer1.0.conv1.weight' without a single"):
        inspect_spec("q", ModelSpec(architecture="resnet50", classes=CLASSES, options={"width_per_group": 0}))


@pytest.mark.parametrize(("name", "size"), [("alexnet", 32), ("squeezenet1_1", 8), ("vit_b_16", 64)])
def test_frames_of_a_size_that_the_architecture_does_not_take_are_refused_by_query_and_field(name, size):
    queries = [{"name": "cars", "feed": "f", "model": {"architecture": name, "classes": CLASSES, "input_size": size}}]
    data = {"name": "w", "feeds": {"f": {"kind": "streets"}}, "queries": queries}
    query = parse_workload(data, source="w.yaml", base=Path()).queries[0]
    model = build_model(query.model)
    with pytest.raises(ModelError, match=f"query 'cars': {name} cannot answer a frame of input_size {size} "):
        check_takes_frames(model, query)
    check_takes_frames(model, query.model_copy(update={"model": query.model.model_copy(update={"input_size": 224})}))


def test_options_with_which_a_detector_answers_nothing_are_refused_by_query_and_value():
    spec = {"architecture": "fcos_resnet18_half", "classes": CLASSES, "options": {"min_size": 64, "max_size": 0}}
    data = {"name": "w", "feeds": {"f": {"kind": "streets"}}, "queries": [{"name": "cars", "feed": "f", "model": spec}]}
    query = parse_workload(data, source="w.yaml", base=Path()).queries[0]
    with pytest.raises(ModelError, match=r"query 'cars': fcos_resnet18_half cannot answer.*'options'.*'max_size': 0"):
        check_takes_frames(build_model(query.model), query)


def test_a_factory_must_be_allowed():
    spec = ModelSpec(factory="torchvision.models:squeezenet1_1", task="classification", classes=CLASSES)
    with pytest.raises(ModelError, match="--allow-factories"):
        build_model(spec)
    assert build_model(spec, allow_factories=True)(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


@pytest.fixture
def spec(tmp_path):
    return ModelSpec(architecture="squeezenet1_1", classes=CLASSES, weights=str(tmp_path / "weights"))


def state_of(spec, seed=1):
    torch.manual_seed(seed)
    return build_model(spec).state_dict()


def assert_loads(spec, state):
    model = build_model(spec)
    load_weights(model, spec)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_prefixes_and_nested_state_dicts_are_understood(spec):
    state = state_of(spec)
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, spec.weights)
    assert_loads(spec, state)


def test_safetensors_are_read(spec):
    spec = spec.model_copy(update={"weights": spec.weights + ".safetensors"})
    state = state_of(spec)
    save_file(state, spec.weights)
    assert_loads(spec, state)


def test_a_pickled_model_is_refused_and_the_way_out_named(spec):
    torch.save(torch.nn.Linear(2, 2), spec.weights)
    with pytest.raises(ModelError, match=r"save model.state_dict\(\)"):
        load_weights(build_model(spec), spec)


@pytest.mark.parametrize(
    "content",
    [b"hello world\n", b"", b"<html>not found</html>", b"PK\x03\x04no zip", pickle.dumps([1, 2]), pickle.dumps(print)],
    ids=["text", "empty", "page", "broken zip", "list", "code"],
)
def test_a_file_of_another_kind_is_refused_in_plain_words(spec, content):
    Path(spec.weights).write_bytes(content)
    with pytest.raises(ModelError, match=r"save model.state_dict\(\)") as error:
        load_weights(build_model(spec), spec)
    assert spec.weights in str(error.value)
    # torch advises to run the code in it, in bold.
    assert "weights_only" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_weights_behind_an_address_are_refused_as_they_were_written(spec):
    spec = spec.model_copy(update={"weights": "http://localhost:1/x.pt"})
    with pytest.raises(ModelError, match=r"http://localhost:1/x\.pt: 'weights' must be a local file"):
        load_weights(build_model(spec), spec)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_file_and_tensor(spec, value):
    state = state_of(spec)
    state["features.3.squeeze.bias"][0] = value
    torch.save(state, spec.weights)
    with pytest.raises(ModelError, match=r"weights: tensor 'features.3.squeeze.bias' holds NaN or infinite values"):
        load_weights(build_model(spec), spec)


def test_a_mask_that_is_infinite_by_design_is_taken():
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    fit_state(model, {name: tensor.clone() for name, tensor in model.state_dict().items()}, source="memory")


def test_missing_truncated_and_misfitting_weights_are_named(spec):
    with pytest.raises(ModelError, match="no such weights file"):
        load_weights(build_model(spec), spec)
    damaged = spec.model_copy(update={"weights": spec.weights + ".safetensors"})
    save_file(state_of(spec), damaged.weights)
    path = Path(damaged.weights)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged"):
        load_weights(build_model(damaged), damaged)
    three = spec.model_copy(update={"classes": ("background", "car", "bus")})
    torch.save(state_of(three), spec.weights)
    with pytest.raises(ModelError, match=r"'classifier.1.weight' has shape \(3, 512, 1, 1\), the model needs \(2, 512"):
        load_weights(build_model(spec), spec)


def small(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def test_bound_layers_are_one_parameter_from_binding_to_training_to_loading():
    models = {"a": small(1), "b": small(2)}
    mean = (models["a"][0].weight.detach() + models["b"][0].weight.detach()) / 2
    alone = distinct_bytes(models.values())
    members = (LayerRef("a", "0"), LayerRef("b", "0"))
    bind(models, MergeConfiguration(shared=(SharedLayer(signature="s", layer_bytes=64, members=members),)))
    assert models["a"][0].weight is models["b"][0].weight
    assert torch.allclose(models["a"][0].weight, mean)
    assert alone - distinct_bytes(models.values()) == 64
    optimiser = torch.optim.AdamW(distinct_parameters(models.values()))
    sum(model(torch.randn(5, 3)).square().sum() for model in models.values()).backward()
    optimiser.step()
    assert models["a"][0].weight is models["b"][0].weight
    models["b"].load_state_dict(models["b"].state_dict())
    assert models["a"][0].weight.data_ptr() == models["b"][0].weight.data_ptr()


def test_layers_of_different_shapes_or_absent_layers_are_refused():
    models = {"a": small(1), "b": small(2)}
    for other, told in (("2", "not all slices of the largest"), ("9", "no layer b:9")):
        members = (LayerRef("a", "0"), LayerRef("b", other))
        with pytest.raises(ModelError, match=told):
            bind(models, MergeConfiguration(shared=(SharedLayer(signature="s", layer_bytes=64, members=members),)))

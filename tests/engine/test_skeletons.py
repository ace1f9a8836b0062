"""Skeletons: models without weights that answer as the plain models do."""

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from gemel_ray.engine.blobs import open_blobs
from gemel_ray.engine.models import bare_model, build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.spec.errors import ModelError
from gemel_ray.spec.workload import ModelSpec

CLASSIFIERS = ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
SMALL_DETECTOR = {"min_size": 64, "max_size": 96, "box_detections_per_img": 5, "rpn_post_nms_top_n_test": 20}


class WithBuffer(nn.Module):
    """A model with a buffer that is no part of its state dict."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.register_buffer("gain", torch.tensor([3.0, 2.0, 1.0]), persistent=False)

    def forward(self, inputs):
        return self.head(inputs.mean(dim=(2, 3)) * self.gain)


def small_transformer(num_classes):
    """torchvision's vision transformer at a tenth of its width."""
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=num_classes)


def resident(made, device):
    """All of a release on the device: its skeletons and the residence."""
    blobs = open_blobs(made.manifest, made.path)
    residence = Residence(device)
    for sha, blob in blobs.items():
        residence.load(sha, blob, made.manifest.blobs[sha].tensor_bytes)
    return build_skeletons(made.manifest, blobs, device, allow_factories=True), residence


def assert_close(found, expected):
    """Same labels, and scores or boxes equal but for rounding."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if hasattr(other, "label"):
            assert one.label == other.label
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
        else:
            assert [box.label for box in one.boxes] == [box.label for box in other.boxes]
            assert [(box.x, box.score) for box in one.boxes] == [
                pytest.approx((box.x, box.score), abs=1e-3) for box in other.boxes
            ]


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_skeleton_with_lent_weights_answers_as_the_plain_model(release_of, frame_of, device, architecture):
    made = release_of({"q": architecture})
    skeletons, residence = resident(made, device)
    frames = [frame_of(0), frame_of(1, 32, 32)]
    given, expected = skeletons["q"].answers(frames, residence), made.direct("q", frames)
    assert_close(given, expected)
    assert given == expected or device.type != "cpu"


def test_a_detector_answers_as_the_plain_model(release_of, frame_of, device):
    made = release_of({"q": "fasterrcnn_mobilenet_v3_large_320_fpn"}, options={"q": SMALL_DETECTOR})
    skeletons, residence = resident(made, device)
    frames = [frame_of(0, 48, 64), frame_of(1, 64, 48)]
    expected = made.direct("q", frames)
    assert sum(len(answer.boxes) for answer in expected) > 0
    assert_close(skeletons["q"].answers(frames, residence), expected)


def test_an_attention_model_shares_its_projections(release_of, frame_of, device):
    attention = "encoder.layers.encoder_layer_1.self_attention"
    small = f"{__name__}:small_transformer"
    made = release_of({"q": small, "r": small}, [[("q", attention), ("r", attention)]])
    skeletons, residence = resident(made, device)
    for query in ("q", "r"):
        assert_close(skeletons[query].answers([frame_of()], residence), made.direct(query, [frame_of()]))


def test_models_that_share_a_blob_compute_with_one_copy_of_it(release_of, frame_of, device):
    made = release_of({"a": "resnet18", "b": "resnet18"}, [[("a", "layer4.1.conv2"), ("b", "layer4.1.conv2")]])
    skeletons, residence = resident(made, device)
    pointers = []
    for name in ("a", "b"):
        module = skeletons[name]._model.get_submodule("layer4.1.conv2")
        module.register_forward_pre_hook(lambda module, _: pointers.append(module.weight.data_ptr()))
        assert_close(skeletons[name].answers([frame_of()], residence), made.direct(name, [frame_of()]))
    shared = made.manifest.queries["a"].weights["layer4.1.conv2"]
    assert pointers == [residence.tensors(shared)["weight"].data_ptr()] * 2
    assert residence.allocated_bytes() == made.bytes_of("a", "b") < made.bytes_of("a") + made.bytes_of("b")


def test_one_model_may_use_a_blob_at_two_places(release_of, frame_of, device):
    made = release_of({"q": "resnet18"}, [[("q", "layer1.0.conv1"), ("q", "layer1.1.conv2")]])
    skeletons, residence = resident(made, device)
    assert_close(skeletons["q"].answers([frame_of()], residence), made.direct("q", [frame_of()]))
    assert residence.allocated_bytes() == made.bytes_of("q")


def test_a_skeleton_holds_no_weights_before_and_after_it_computes(release_of, frame_of, device):
    made = release_of({"q": "resnet18"})
    skeletons, residence = resident(made, device)
    model = skeletons["q"]._model
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    skeletons["q"].answers([frame_of()], residence)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


def test_weights_are_taken_back_when_the_forward_pass_raises(release_of, device):
    made = release_of({"q": "resnet18"})
    skeletons, residence = resident(made, device)
    with pytest.raises(ValueError, match="array"):
        skeletons["q"].answers([], residence)
    assert {tensor.device.type for tensor in skeletons["q"]._model.parameters()} == {"meta"}


def test_buffers_outside_the_state_dict_stay_real(device):
    spec = ModelSpec(factory=f"{__name__}:WithBuffer", task="classification", classes=("background", "car"))
    model = bare_model(spec, device, allow_factories=True)
    assert model.head.weight.device.type == "meta"
    assert model.gain.device.type == device.type
    assert model.gain.tolist() == [3, 2, 1]


def test_a_release_made_for_another_architecture_is_refused(release_of):
    made = release_of({"q": "resnet18"})
    query = made.manifest.queries["q"]
    wrong = query.query.model.model_copy(update={"architecture": "resnet34"})
    other = query.model_copy(update={"query": query.query.model_copy(update={"model": wrong})})
    manifest = made.manifest.model_copy(update={"queries": {"q": other}})
    with pytest.raises(ModelError, match=r"no blob of the release holds 'layer1\.2\.conv1\.weight', which resnet34"):
        build_skeletons(manifest, open_blobs(manifest, made.path), torch.device("cpu"))


def test_a_release_made_for_other_classes_is_refused(release_of):
    made = release_of({"q": "resnet18"})
    query = made.manifest.queries["q"]
    wrong = query.query.model.model_copy(update={"classes": ("background", "car")})
    other = query.model_copy(update={"query": query.query.model_copy(update={"model": wrong})})
    manifest = made.manifest.model_copy(update={"queries": {"q": other}})
    with pytest.raises(ModelError, match=r"'fc\.weight' is \(3, 512\).*resnet18 has \(2, 512\)"):
        build_skeletons(manifest, open_blobs(manifest, made.path), torch.device("cpu"))

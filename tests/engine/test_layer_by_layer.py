"""Computing starts before the last layer has arrived, and never with a layer that has not: delays are injected."""

import random
import threading
import time
from contextlib import contextmanager

import pytest
from torch import nn

from gemel_ray.edge.ledger import Ledger
from gemel_ray.engine.blobs import open_blobs
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.spec.actions import Evict, Infer, Load

WAIT_S = 60
LAYERS = ("layer1.0.conv1", "layer2.1.conv2", "layer3.0.conv1", "layer4.1.conv2")


class LateResidence(Residence):
    """Waits before each copy as it is told."""

    def __init__(self, device):
        super().__init__(device)
        self.before = lambda weight: None

    def load(self, weight, blob, expected_bytes):
        self.before(weight)
        super().load(weight, blob, expected_bytes)


class ReadsAhead(nn.Module):
    """Reads a layer's weights long before it calls the layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, num_classes)

    def forward(self, inputs):
        scale = self.head.weight.abs().mean()
        return self.head(self.body(inputs * scale).mean(dim=(2, 3)))


@pytest.fixture
def served(device):
    """A device that holds nothing yet, and its residence."""
    devices = []

    def make(made):
        blobs = open_blobs(made.manifest, made.path)
        skeletons = build_skeletons(made.manifest, blobs, device, allow_factories=True)
        devices.append(TorchDevice(skeletons, blobs, LateResidence(device), Ledger(10**9)))
        return devices[-1]

    yield make
    for each in devices:
        each.close()


def resnet(release_of):
    """Two queries that share layers, each of which is a weight set of its own."""
    return release_of({"q": "resnet18", "r": "resnet18"}, [[("q", path), ("r", path)] for path in LAYERS])


def start_all(device, made, query, frame):
    """All missing weights, in the order in which they are needed, and an inference at once."""
    for weight in device.skeleton(query, 0).weights:
        if weight not in device.residence:
            device.start(Load(weight, made.manifest.blobs[weight].tensor_bytes, 1.0))
    device.frames[0] = frame
    device.start(Infer(query, (0,), 2**20, 1.0))


def answer_of(device):
    while isinstance((done := device.next_event()).action, Load):
        assert done.failure is None
    assert done.failure is None
    return device.answers.pop(0)


def same(device, given, expected):
    """Bit for bit on a CPU; a GPU computes otherwise than the plain model on the CPU does."""
    if device.residence.device.type == "cpu":
        return given == expected
    return given.scores == pytest.approx(expected.scores, abs=1e-4)


def evict(device, *weights):
    for weight in weights or device.residence.weights:
        device.start(Evict(weight))


@contextmanager
def gate_before(device, weight):
    """The weight's copy does not begin before the end of this."""
    go_on = threading.Event()
    device.residence.before = lambda name: go_on.wait(WAIT_S) if name == weight else None
    try:
        yield
    finally:
        go_on.set()


def test_layers_compute_while_a_later_one_has_not_arrived(release_of, frame_of, served):
    made = resnet(release_of)
    served_device = served(made)
    start_all(served_device, made, "q", frame_of())
    first = answer_of(served_device)
    late = made.manifest.queries["q"].weights["layer4.1.conv2"]
    evict(served_device, late)
    model, reached, order = served_device.skeleton("q", 0)._model, threading.Event(), []
    model.get_submodule("layer3").register_forward_hook(lambda *_: order.append("layer3"))
    model.get_submodule("layer3").register_forward_hook(lambda *_: reached.set())
    model.get_submodule("layer4.1.conv2").register_forward_hook(lambda *_: order.append("late layer"))
    with gate_before(served_device, late):
        start_all(served_device, made, "q", frame_of())
        assert reached.wait(WAIT_S), "nothing computes before the last weights are there"
        assert late not in served_device.residence
        order.append("gate opens")
    second = answer_of(served_device)
    assert order == ["layer3", "gate opens", "late layer"]
    assert second == first
    assert same(served_device, second, made.direct("q", [frame_of()])[0])


def test_answers_are_the_same_whatever_arrives_how_late(release_of, frame_of, served):
    made, rng = resnet(release_of), random.Random(3)
    device = served(made)
    for query in ("q", "r"):
        start_all(device, made, query, frame_of())
        answer_of(device)
    expected = {(query, seed): made.direct(query, [frame_of(seed)])[0] for query in ("q", "r") for seed in range(3)}
    device.residence.before = lambda weight: time.sleep(rng.choice([0.0, 0.0, 0.002, 0.02]))
    for turn in range(24):
        held = device.residence.weights
        evict(device, *rng.sample(held, rng.randint(1, len(held))))
        query, seed = rng.choice(list(expected))
        start_all(device, made, query, frame_of(seed))
        given = answer_of(device)
        assert same(device, given, expected[query, seed]), turn


def test_shared_weights_are_one_memory_for_both_queries_after_every_swap(release_of, frame_of, served):
    made = resnet(release_of)
    device, pointers = served(made), []
    for query in ("q", "r"):
        device.skeleton(query, 0)._model.get_submodule("layer3.0.conv1").register_forward_hook(
            lambda module, *_: pointers.append(module.weight.data_ptr())
        )
    for _ in range(3):
        start_all(device, made, "q", frame_of())
        answer_of(device)
        start_all(device, made, "r", frame_of())
        answer_of(device)
        shared = made.manifest.queries["q"].weights["layer3.0.conv1"]
        assert pointers == [device.residence.tensors(shared)["weight"].data_ptr()] * 2
        assert device.residence.allocated_bytes() == made.bytes_of("q", "r")
        pointers.clear()
        evict(device)


def test_a_model_that_reads_ahead_of_its_calls_still_answers_right(release_of, frame_of, served):
    made = release_of({"q": f"{__name__}:ReadsAhead", "r": f"{__name__}:ReadsAhead"}, [[("q", "head"), ("r", "head")]])
    device = served(made)
    for _ in range(3):
        start_all(device, made, "q", frame_of())
        assert same(device, answer_of(device), made.direct("q", [frame_of()])[0])
        evict(device)


def test_attention_gets_its_projections_in_good_time(release_of, frame_of, served):
    projection = "encoder.layers.encoder_layer_1.self_attention.out_proj"
    vit = "test_skeletons:small_transformer"
    made = release_of({"q": vit, "r": vit}, [[("q", projection), ("r", projection)]])
    device = served(made)
    for _ in range(3):
        start_all(device, made, "q", frame_of())
        assert same(device, answer_of(device), made.direct("q", [frame_of()])[0])
        evict(device)


def test_a_load_that_fails_fails_the_inference_that_waits_for_it_and_the_next_one_succeeds(
    release_of, frame_of, served
):
    made = resnet(release_of)
    device = served(made)
    start_all(device, made, "q", frame_of())
    answer_of(device)
    late = made.manifest.queries["q"].weights["layer4.1.conv2"]
    evict(device, late)

    def broken(weight):
        raise OSError("broken")

    device.residence.before = broken
    start_all(device, made, "q", frame_of())
    failures = [device.next_event().failure for _ in range(2)]
    assert "broken" in failures[0]
    assert "did not arrive" in failures[1]
    device.residence.before = lambda weight: None
    start_all(device, made, "q", frame_of())
    assert same(device, answer_of(device), made.direct("q", [frame_of()])[0])


def test_when_weights_are_first_needed_is_told_by_module_path_however_they_are_divided(release_of, frame_of, device):
    made = resnet(release_of)
    blobs = open_blobs(made.manifest, made.path)
    residence = Residence(device)
    for sha, blob in blobs.items():
        residence.load(sha, blob, made.manifest.blobs[sha].tensor_bytes)
    skeleton = build_skeletons(made.manifest, blobs, device)["q"]
    first_use = skeleton.first_uses([frame_of()], residence)
    assert first_use.keys() == {name.rpartition(".")[0] for name in made.models["q"].state_dict()}
    in_order = [first_use[path] for path in ("conv1", "bn1", *LAYERS, "fc")]
    assert in_order == sorted(in_order)
    assert 0 <= in_order[0] < in_order[-1] <= 1

"""Detectors from boxes to release: they learn, share, are held to F1, and never train on what is not finite."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from gemel_ray.policy.grouping import group_layers
from gemel_ray.spec.answers import Box, Detected
from gemel_ray.spec.errors import FeedError, GemelError
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import Candidate
from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.data import SplitData, read_query_data, run_model, score_on_labels, with_teacher
from gemel_ray.training.dense import dense_loss, read_outputs
from gemel_ray.training.fleet import train_fleet
from gemel_ray.training.joint import JointRetraining, RetrainOptions
from gemel_ray.training.losses import batch_loss, frames_a_step
from gemel_ray.training.normalisation import reestimate_normalisation
from gemel_ray.training.originals import balanced_chances, common_feed, train_original
from gemel_ray.training.releases import publish_originals
from gemel_ray.training.trial import Trial
from gemel_ray.vision.checkpoints import fit_state, read_state
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.metrics import DETECTION_F1, compare
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import task_for
from gemel_ray.weights.store import open_store

SLIM = {
    "architecture": "fcos_resnet18_half",
    "classes": ["background", "vehicle"],
    "options": {"min_size": 64, "max_size": 96},
}
CLASSIFIER = {"architecture": "resnet18_half", "classes": ["background", "vehicle"], "input_size": 32}
FASTER = {
    "architecture": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "classes": ["background", "vehicle"],
    "options": {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16},
}
SSD = {"architecture": "ssdlite320_mobilenet_v3_large", "classes": ["background", "vehicle"]}


def workload(*models, frames=200, sizes=((96, 64),) * 3, target=1.0):
    names = "abc"[: len(models)]
    feeds = {
        name: {"kind": "streets", "seed": place, "frames": frames, "width": width, "height": height}
        for place, (name, (width, height)) in enumerate(zip(names, sizes, strict=False))
    }
    queries = [
        {"name": name, "feed": name, "accuracy_target": target, "score_threshold": 0.4, "model": model}
        for name, model in zip(names, models, strict=True)
    ]
    return parse_workload({"name": "w", "feeds": feeds, "queries": queries}, source="w", base=Path())


def read(found):
    return {query.name: read_query_data(query, found.feeds[query.feed], needs_labels=True) for query in found.queries}


def everything(found):
    return MergeConfiguration.of(group_layers(analyze(found).inventories))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def fleet():
    """Two detectors of one family and a classifier on the same backbone, each with its own camera."""
    found = workload(SLIM, SLIM, CLASSIFIER)
    data = read(found)
    models = {"a": train_original(data["a"], steps=60, seed=0)}
    models["b"] = train_original(data["b"], steps=40, seed=0, ancestor=models["a"].state_dict())
    models["c"] = train_original(data["c"], steps=20, seed=0)
    return found, {name: with_teacher(part, models[name]) for name, part in data.items()}, models


def copies(models, *names):
    found = workload(SLIM, SLIM, CLASSIFIER)
    fresh = {name: build_model(found.query(name).model) for name in names}
    for name, model in fresh.items():
        model.load_state_dict(models[name].state_dict())
    return fresh


def test_a_detector_learns_from_its_feeds_boxes(fleet):
    _, data, _ = fleet
    for name in "ab":
        torch.manual_seed(0)
        _, untrained = run_model(build_model(data[name].query.model), data[name].task, data[name].splits["gate"].images)
        before = score_on_labels(data[name], "gate", untrained)
        after = score_on_labels(data[name], "gate", data[name].splits["gate"].answers)
        assert before.measure == after.measure == DETECTION_F1
        assert after.estimate > before.estimate + 0.25


def test_a_detector_agrees_wholly_with_itself(fleet):
    _, data, models = fleet
    gate = data["a"].splits["gate"]
    _, answers = run_model(models["a"], data["a"].task, gate.images)
    assert any(answer.boxes for answer in answers)
    assert compare(gate.answers, answers).estimate == 1.0


@pytest.mark.parametrize("objective", ["labels", "distillation", "both"])
def test_detectors_retrained_jointly_keep_one_copy(fleet, objective):
    _, data, models = fleet
    pair = workload(SLIM, SLIM)
    options = RetrainOptions(max_steps=10, validate_every=10, objective=objective)
    retraining = JointRetraining(copies(models, "a", "b"), data, everything(pair), options)
    seen = list(retraining.run())
    for layer in everything(pair).shared:
        first, second = (retraining.models[member.query].get_submodule(member.layer) for member in layer.members)
        assert first.weight is second.weight
    assert [validation.step for validation in seen] == [0, 10]
    assert min(score.estimate for score in seen[-1].scores.values()) > 0


@pytest.mark.parametrize("model", [SLIM, SSD], ids=lambda model: model["architecture"])
def test_a_dense_detector_learns_what_the_original_says_of_every_place(model):
    query = workload(model).queries[0]
    torch.manual_seed(0)
    original, other = build_model(query.model), build_model(query.model)
    images, task = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), np.uint8), task_for(query.model)
    split = SplitData(images, np.zeros(4, np.int64))
    for net in (original, other):
        reestimate_normalisation(net, task, split, seed=0, batches=1)
    outputs = read_outputs(original, task, images)
    own, others = (dense_loss(net, task, list(images), outputs) for net in (original, other))
    assert own.item() < 1e-4 * others.item()
    others.backward()
    gradients = [parameter.grad for parameter in other.head.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_places_are_taught_only_where_they_correspond():
    images = np.zeros((4, 64, 96, 3), np.uint8)
    slim, faster = (build_model(workload(model).queries[0].model) for model in (SLIM, FASTER))
    task = task_for(workload(SLIM).queries[0].model)
    assert read_outputs(slim, task, (images[0], images[0][:48])) is None
    assert read_outputs(faster, task, images) is None
    assert {len(values) for values in read_outputs(slim, task, images).values()} == {4}


def test_a_classifier_and_a_detector_share_their_backbone(fleet):
    _, data, models = fleet
    mixed = workload(SLIM, SLIM, CLASSIFIER)
    shared = [group for group in group_layers(analyze(mixed).inventories) if {"a", "c"} <= set(group.queries)]
    assert sum(group.layer_bytes for group in shared) > 0.95 * sum(
        parameter.nbytes for name, parameter in models["c"].named_parameters() if not name.startswith("fc")
    )
    configuration = MergeConfiguration.of(shared)
    retraining = JointRetraining(copies(models, "a", "b", "c"), data, configuration, RetrainOptions(max_steps=2))
    assert list(retraining.run())[-1].step == 2
    detector, classifier = retraining.models["a"], retraining.models["c"]
    assert detector.backbone.body.layer4[1].conv2.weight is classifier.layer4[1].conv2.weight
    assert {score.measure for score in retraining.score("gate").values()} == {DETECTION_F1, "balanced agreement"}


def test_an_outcome_tells_a_detectors_accuracy_on_labels(fleet, tmp_path):
    _, data, models = fleet
    pair = workload(SLIM, SLIM)
    store = open_store(str(tmp_path / "store"), create=True)
    publish_originals(store, pair, {name: models[name] for name in "ab"}, seed=0)
    candidate = Candidate(number=0, label="all", configuration=everything(pair), max_steps=0, start_release=1)
    trial = Trial(candidate, data, store)
    outcome = trial.outcome(replace(list(trial.run())[-1], verdict="reached"))
    for name, accuracy in outcome.accuracies.items():
        own = score_on_labels(data[name], "gate", data[name].splits["gate"].answers)
        assert accuracy.measure == DETECTION_F1
        assert accuracy.original_accuracy == own.estimate
        assert 0 <= accuracy.merged_accuracy <= 1


@pytest.mark.parametrize("model", [SLIM, FASTER, SSD], ids=lambda model: model["architecture"])
def test_frames_without_boxes_train(model):
    query = workload(model).queries[0]
    frames = np.zeros((2, 64, 96, 3), np.uint8)
    seen = Detected((Box("vehicle", 0.9, 20.0, 10.0, 40.0, 30.0),))
    split = SplitData(frames, np.zeros(2, np.int64), answers=(seen, Detected(())))
    net = build_model(query.model).train()
    for places in ([0, 1], [1, 1]):
        batch_loss(net, task_for(query.model), split, np.array(places)).backward()
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_boxes_too_thin_for_32_bits_are_left_out():
    thin = (Box("vehicle", 1.0, 50.0, 5.0, 1e-9, 10.0), Box("vehicle", 1.0, 5.0, 5.0, 30.0, 20.0))
    split = SplitData(np.zeros((2, 64, 96, 3), np.uint8), np.ones(2, np.int64), (thin, thin[:1]))
    query = workload(SLIM).queries[0]
    task = task_for(query.model)
    assert batch_loss(build_model(query.model).train(), task, split, np.array([0, 1]), "labels").isfinite()


@pytest.mark.parametrize("model", [SLIM, CLASSIFIER], ids=lambda model: model["architecture"])
def test_training_that_diverges_is_an_error_and_gives_no_weights(model):
    part = read(workload(model))["a"]
    with pytest.raises(GemelError, match="diverged"):
        train_original(part, steps=10, seed=0, learning_rate=1e30)


def test_joint_retraining_from_weights_that_are_not_finite_is_an_error(fleet):
    _, data, models = fleet
    broken = copies(models, "a", "b")
    with torch.no_grad():
        broken["b"].head.regression_head.bbox_reg.weight.fill_(float("nan"))
    retraining = JointRetraining(broken, data, everything(workload(SLIM, SLIM)), RetrainOptions(max_steps=2))
    with pytest.raises(GemelError, match="FCOS became nan"):
        list(retraining.run())


def test_frozen_normalisation_keeps_its_constants_while_the_rest_is_estimated(fleet):
    _, data, models = fleet
    (model,) = copies(models, "a").values()
    frozen = FrozenBatchNorm2d(32)
    model.backbone.body.bn1 = frozen
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reestimate_normalisation(model, data["a"].task, data["a"].splits["train"], seed=0, batches=2)
    after = model.state_dict()
    changed = {name for name in before if name.endswith("running_mean") and not torch.equal(before[name], after[name])}
    assert "backbone.body.layer1.0.bn1.running_mean" in changed
    assert "backbone.body.bn1.running_mean" not in changed
    assert not any(module.training for module in model.modules())


def test_a_slow_running_average_is_settled_before_an_original_answers():
    slow = {**CLASSIFIER, "architecture": "mobilenet_v3_small"}
    part = read(workload(slow))["a"]
    model = train_original(part, steps=5, seed=0)
    means = [norm.running_mean for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    twin = train_original(part, steps=5, seed=0)
    reestimate_normalisation(twin, part.task, part.splits["train"], seed=0)
    again = [norm.running_mean for norm in twin.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert all(torch.allclose(one, other) for one, other in zip(means, again, strict=True))


def test_a_fleet_of_unequal_frames_has_a_common_ancestor_and_reports_f1(tmp_path):
    found = workload(SLIM, SLIM, CLASSIFIER, sizes=((96, 64), (64, 48), (64, 64)))
    trained = train_fleet(found, tmp_path, steps=3, seed=0, family=True)
    part = read(found)["b"]
    model = build_model(part.query.model)
    fit_state(model, read_state(tmp_path / "b.safetensors"), source="b")
    _, answers = run_model(model, part.task, part.splits["gate"].images)
    assert trained[1].gate_accuracy == score_on_labels(part, "gate", answers).estimate
    assert all(0 <= original.gate_accuracy <= 1 for original in trained)
    again = train_fleet(found, tmp_path, steps=3, seed=0, family=True)
    assert [original.cached for original in again] == [True] * 3


def test_a_common_feed_speaks_of_the_first_querys_classes():
    people = {**SLIM, "classes": ["background", "person"]}
    parts = list(read(workload(SLIM, people)).values())
    train = common_feed(parts).splits["train"]
    own, other = (part.splits["train"].boxes for part in parts)
    assert len(train.images) == len(train.boxes) == len(own) + len(other)
    assert {box.label for boxes in other for box in boxes} == {"person"}
    assert {box.label for boxes in train.boxes for box in boxes} == {"vehicle"}


def test_frames_are_drawn_by_their_rarest_class_and_empty_ones_as_often_as_they_are():
    car, person = Box("car", 1.0, 0.0, 0.0, 9.0, 9.0), Box("person", 1.0, 0.0, 0.0, 9.0, 9.0)
    split = SplitData((), np.zeros(5, np.int64), ((car,), (car,), (car,), (car, person), ()))
    chances = balanced_chances(split, detects=True)
    assert chances[3] == pytest.approx(chances[:3].sum())
    assert chances[4] == pytest.approx(1 / 5)


def test_a_detector_takes_fewer_frames_a_step_but_never_one():
    detector, classifier = (task_for(workload(model).queries[0].model) for model in (SLIM, CLASSIFIER))
    assert (frames_a_step(detector, 32), frames_a_step(classifier, 32), frames_a_step(detector, 4)) == (8, 32, 2)


def test_a_feed_without_boxes_trains_no_detector(tmp_path):
    for name in ("vehicle", "other"):
        (tmp_path / name).mkdir()
        for number in range(80):
            PIL.Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    data = {
        "name": "w",
        "feeds": {"f": {"kind": "image_folder", "path": str(tmp_path)}},
        "queries": [{"name": "q", "feed": "f", "model": SLIM}],
    }
    found = parse_workload(data, source="w", base=Path())
    with pytest.raises(FeedError, match="carries no boxes to train"):
        read_query_data(found.queries[0], found.feeds["f"], needs_labels=True)
    part = read_query_data(found.queries[0], found.feeds["f"])
    assert score_on_labels(part, "gate", [Detected(())] * len(part.splits["gate"].images)) is None

"""Joint retraining on small street cameras: shared stays shared, targets are met, the gate is unseen."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from gemel_ray.policy.grouping import group_layers
from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.data import read_query_data, run_model, with_teacher
from gemel_ray.training.joint import JointRetraining, RetrainOptions
from gemel_ray.training.mixing import blended
from gemel_ray.training.originals import train_original
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.metrics import Score, compare_labels, f1, wilson_lower


def workload(kind="streets", **feed):
    data = {
        "name": "w",
        "feeds": {name: {"kind": kind, "seed": seed, "frames": 300, **feed} for seed, name in enumerate("fg")},
        "queries": [
            {
                "name": f"{name}_cars",
                "feed": name,
                "accuracy_target": 0.7,
                "model": {"architecture": "squeezenet1_1", "classes": ["background", "vehicle"], "input_size": 32},
            }
            for name in "fg"
        ],
    }
    return parse_workload(data, source="w", base=Path())


@pytest.fixture(scope="module")
def fleet():
    torch.set_num_threads(1)
    found = workload()
    data = {query.name: read_query_data(query, found.feeds[query.feed], needs_labels=True) for query in found.queries}
    models, ancestor = {}, None
    for name, part in data.items():
        models[name] = train_original(part, steps=25, seed=0, ancestor=ancestor)
        ancestor = models[name].state_dict()
    return found, {name: with_teacher(part, models[name]) for name, part in data.items()}, models


def everything(found):
    return MergeConfiguration.of(group_layers(analyze(found).inventories))


def test_what_is_shared_stays_one_parameter_and_the_best_weights_are_kept(fleet):
    found, data, models = fleet
    configuration = everything(found)
    retraining = JointRetraining(models, data, configuration, RetrainOptions(max_steps=12, validate_every=6))
    seen = list(retraining.run())
    assert seen[0].step == 0
    assert seen[-1].verdict is not None
    for layer in configuration.shared:
        first, second = (retraining.models[member.query].get_submodule(member.layer) for member in layer.members)
        assert first.weight is second.weight
    final = {name: score.estimate for name, score in retraining.score("validation").items()}
    assert final == pytest.approx({name: score.estimate for name, score in seen[-1].scores.items()})
    best = max(min(score.estimate for score in validation.scores.values()) for validation in seen)
    assert min(final.values()) == pytest.approx(best)


def test_splits_share_no_frame_and_the_teacher_answers_all(fleet):
    _, data, _ = fleet
    for part in data.values():
        frames = [image.tobytes() for split in part.splits.values() for image in np.stack(list(split.images))]
        assert len(set(frames)) == len(frames)
        assert all(len(split.answers) == len(split.images) == len(split.logits) for split in part.splits.values())


def test_a_feed_that_is_too_short_or_lacks_the_class_is_named():
    found = workload(frames=40)
    with pytest.raises(FeedError, match=r"query 'f_cars': feed 'f' leaves \d+ frames"):
        read_query_data(found.queries[0], found.feeds["f"])
    odd = found.queries[0].model_copy(
        update={"model": found.queries[0].model.model_copy(update={"classes": ("x", "dog")})}
    )
    with pytest.raises(FeedError, match="knows no class 'dog'"):
        read_query_data(odd, found.feeds["f"])


def test_a_camera_of_background_alone_earns_no_agreement_for_saying_so():
    score = compare_labels(["background"] * 95 + ["car"] * 5, ["background"] * 100)
    assert score.estimate == 0.5
    assert score.lower_bound < 0.5


def test_bounds_lie_below_estimates():
    assert 0.9 < wilson_lower(98, 100) < 0.98
    assert wilson_lower(0, 10) == 0.0
    assert f1(0, 0, 0) == 1.0
    assert f1(3, 1, 1) == 0.75


@pytest.mark.parametrize(("recipe", "objective"), [("ours", "labels"), ("paper", "labels")])
def test_the_baseline_recipe_and_hard_labels_train_too(fleet, recipe, objective):
    found, data, models = fleet
    options = RetrainOptions(max_steps=4, validate_every=2, start="member", recipe=recipe, objective=objective)
    seen = list(
        JointRetraining({n: copy.deepcopy(m) for n, m in models.items()}, data, everything(found), options).run()
    )
    assert seen[-1].verdict is not None
    assert all(0 <= score.estimate <= 1 for score in seen[-1].scores.values())


def test_originals_answer_blends_of_their_frames_and_half_of_every_step_is_such(fleet):
    found, data, models = fleet
    taught = {name: with_teacher(part, models[name], mixed_frames=40) for name, part in data.items()}
    for name, part in taught.items():
        assert part.mixed.images.shape == (40, 32, 32, 3)
        assert part.mixed.images.dtype == np.uint8
        logits, _ = run_model(models[name], part.task, part.mixed.images)
        np.testing.assert_array_equal(part.mixed.logits, logits)
    fresh = {name: copy.deepcopy(model) for name, model in models.items()}
    retraining = JointRetraining(fresh, taught, everything(found), RetrainOptions(max_steps=4))
    part = taught[found.queries[0].name]
    lesson = retraining._lesson(part)
    known = {image.tobytes() for image in part.splits["train"].images}
    assert [image.tobytes() in known for image in lesson.images].count(True) == len(lesson.images) // 2
    assert list(retraining.run())[-1].verdict is not None


def test_blends_lie_between_two_frames():
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (10, 250)])
    blends = blended(images, 200, np.random.default_rng(0))
    assert (blends.min(), blends.max()) == (10, 250)
    assert len(np.unique(blends)) > 20


def test_who_is_further_from_its_original_counts_for_more(fleet):
    found, data, models = fleet
    fresh = {name: copy.deepcopy(model) for name, model in models.items()}
    retraining = JointRetraining(fresh, data, everything(found), RetrainOptions(max_steps=4))
    far, near = (query.name for query in found.queries)
    retraining._weigh({far: Score("", 0.7, 0.6, 10), near: Score("", 0.9, 0.8, 10)})
    assert retraining._loss_weights == pytest.approx({far: 1.5, near: 0.5})
    retraining._weigh({far: Score("", 0.0, 0.0, 10), near: Score("", 1.0, 1.0, 10)})
    assert retraining._loss_weights == pytest.approx({far: 2 / 1.002, near: 1 / 3}, abs=0.01)

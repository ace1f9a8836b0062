"""Joint retraining on small street cameras: shared stays shared, targets are met, the gate is unseen."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gemel_ray.policy.grouping import group_layers, group_slices_in_sets
from gemel_ray.spec.answers import Classified
from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.trials import Candidate
from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.data import read_query_data, run_model, with_teacher
from gemel_ray.training.joint import JointRetraining, RetrainOptions
from gemel_ray.training.originals import train_original
from gemel_ray.training.releases import publish_originals
from gemel_ray.training.trial import Trial
from gemel_ray.training.views import overfit_fraction, taught, viewed
from gemel_ray.vision.binding import distinct_bytes, distinct_parameters
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.metrics import RELATIVE, Score, compare_labels, f1, wilson_lower
from gemel_ray.weights.store import open_store


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


def everything(found, grouped=group_layers):
    return MergeConfiguration.of(grouped(analyze(found).inventories))


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


@pytest.mark.parametrize("grouped", [group_layers, group_slices_in_sets])
def test_shared_weights_are_remembered_once_and_brought_back_to_every_model(fleet, grouped):
    found, data, models = fleet
    models = copy.deepcopy(models)
    retraining = JointRetraining(models, data, everything(found, grouped), RetrainOptions(max_steps=2))
    merged = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    retraining._keep()
    assert sum(tensor.nbytes for tensor in retraining._kept) == distinct_bytes(models.values())
    with torch.no_grad():
        for parameter in distinct_parameters(models.values()):
            parameter.zero_()
    retraining._restore()
    for name, model in models.items():
        for path, tensor in model.state_dict().items():
            assert torch.equal(tensor, merged[name][path]), path


class Scripted(JointRetraining):
    """Told how every validation ends; remembers the rate of every step."""

    def __init__(self, *given, estimates):
        super().__init__(*given)
        self.estimates, self.rates = list(estimates), []

    def score(self, split):
        estimate = self.estimates.pop(0)
        return {query: Score("", estimate, estimate, 100) for query in self.models}

    def _one_step(self, optimiser):
        self.rates.append(optimiser.param_groups[0]["lr"])


def test_a_run_that_may_stop_first_trains_a_quarter_longer_while_the_rate_falls_to_nothing(fleet):
    found, data, models = fleet
    options = RetrainOptions(max_steps=60, validate_every=2)
    # Safe for the first time after twelve steps; a little worse after cooling down, so those weights are kept.
    low, high = [0.5] * 6, [0.99, 0.98]
    run = Scripted(copy.deepcopy(models), data, everything(found), options, estimates=[*low, *high])
    seen = list(run.run())
    assert [each.step for each in seen] == [0, 2, 4, 6, 8, 10, 12, 15]
    assert [each.verdict for each in seen] == [*[None] * 7, "reached"]
    assert {score.estimate for score in seen[-1].scores.values()} == {0.99}
    assert run.rates[11] > run.rates[12] > run.rates[13] > run.rates[14] == pytest.approx(run.rates[11] / 4)


def test_a_run_that_is_not_accepted_goes_on_to_its_last_step_and_keeps_the_best_of_what_follows(fleet):
    found, data, models = fleet
    options = RetrainOptions(max_steps=12, validate_every=4)
    # Safe after four steps, cooled down until the eighth; what follows is never as good on validation again.
    run = Scripted(copy.deepcopy(models), data, everything(found), options, estimates=[0.5, 0.99, 0.985, 0.97])
    asked = []

    def refuses(scores):
        asked.append({score.estimate for score in scores.values()})
        return False

    seen = list(run.run(refuses))
    assert [(each.step, each.verdict) for each in seen] == [(0, None), (4, None), (8, None), (12, "reached")]
    assert asked == [{0.99}], "only once"
    assert {score.estimate for score in seen[-1].scores.values()} == {0.97}
    assert run.rates[8] > run.rates[7], "the rate goes on where it would have been without the cool-down"


def test_the_gate_is_asked_again_once_a_trial_has_trained_to_its_end(fleet, tmp_path):
    """The gate's frames say no to weights that reach every target on validation without a step."""
    found, data, models = fleet
    store = open_store(str(tmp_path), create=True)
    start = publish_originals(store, found, models, seed=0)
    easy = {
        name: replace(part, query=part.query.model_copy(update={"accuracy_target": 0.05}))
        for name, part in data.items()
    }
    candidate = Candidate(
        number=0, label="all", configuration=everything(found), max_steps=4, start_release=start.release, gate_margin=1
    )
    trial, answers = Trial(candidate, easy, store), []
    really = trial.retraining.answers

    def wrong_at_first(split):
        given = really(split)
        answers.append(split)
        if answers.count("gate") > 1 or split != "gate":
            return given
        return {query: [replace(each, label="nothing") for each in some] for query, some in given.items()}

    trial.retraining.answers = wrong_at_first
    *_, last = trial.run()
    assert (last.step, last.verdict) == (4, "reached")
    assert trial.outcome(last).passed
    assert answers.count("gate") == 2


@pytest.mark.parametrize(
    ("estimate", "max_steps", "ends"), [(0.2, 400, 100), (0.2, 100, 50), (0.3, 400, 200), (0.6, 400, 400)]
)
def test_a_run_far_below_its_target_ends_the_sooner_the_further_it_is(fleet, estimate, max_steps, ends):
    found, data, models = fleet
    options = RetrainOptions(max_steps=max_steps, validate_every=25)
    # Best at first: a later fall does not end a run.
    estimates = [estimate, *[0.1] * 16]
    run = Scripted(copy.deepcopy(models), data, everything(found), options, estimates=estimates)
    last = list(run.run())[-1]
    assert (last.step, last.verdict) == (ends, "missed" if ends == max_steps else "hopeless")
    patient = replace(options, gives_up=False)
    run = Scripted(copy.deepcopy(models), data, everything(found), patient, estimates=estimates)
    assert list(run.run())[-1].step == max_steps


def test_nobody_cools_down_at_the_last_step_and_a_constant_rate_stays_constant(fleet):
    found, data, models = fleet
    for recipe, steps in (("ours", 4), ("paper", 60)):
        options = RetrainOptions(max_steps=steps, validate_every=4, recipe=recipe)
        run = Scripted(copy.deepcopy(models), data, everything(found), options, estimates=[0.5, 0.99])
        assert [(each.step, each.verdict) for each in run.run()] == [(0, None), (4, "reached")]


def test_retraining_repeats_bit_for_bit_though_models_drop_what_they_draw(fleet):
    """Squeezenets drop half of their features while they train."""
    found, data, models = fleet
    states = []
    for disturbance in range(2):
        torch.manual_seed(disturbance)
        options = RetrainOptions(max_steps=4, validate_every=2, seed=3)
        retraining = JointRetraining(copy.deepcopy(models), data, everything(found), options)
        optimiser = retraining._optimiser()
        retraining._train(optimiser, retraining._train(optimiser, 0))
        states.append({name: model.state_dict() for name, model in retraining.models.items()})
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_views_are_the_frame_flipped_and_shifted_and_the_original_answers_them(fleet):
    _, data, models = fleet
    name, part = next(iter(data.items()))
    train, places = part.splits["train"], [3, 1, 3, 0]
    views = viewed(train, places, np.random.default_rng(1))
    again = viewed(train, places, np.random.default_rng(1))
    for view, same, place in zip(views, again, places, strict=True):
        frame = train.images[place]
        assert view.shape == frame.shape
        assert np.array_equal(view, same)
        assert {tuple(pixel) for pixel in view.reshape(-1, 3)} <= {tuple(pixel) for pixel in frame.reshape(-1, 3)}
    assert not np.array_equal(views[0], views[2])
    learned = taught(views, train.labels[places], part.task, models[name])
    assert np.array_equal(learned.logits, run_model(models[name], part.task, views)[0])
    assert len(learned.answers) == len(places)


def test_a_trial_learns_from_views_where_its_candidate_says_so(fleet, tmp_path):
    found, data, models = fleet
    store = open_store(str(tmp_path), create=True)
    start = publish_originals(store, found, models, seed=0)
    told = {"number": 0, "label": "all", "configuration": everything(found), "start_release": start.release}
    plain, viewing, again = (
        Trial(Candidate(**told, max_steps=2, views=views), data, store) for views in (False, True, True)
    )
    states = []
    for trial in (plain, viewing, again):
        trial.retraining._train(trial.retraining._optimiser(), 0)
        states.append({name: model.state_dict() for name, model in trial.retraining.models.items()})
    torch.testing.assert_close(states[1], states[2], rtol=0, atol=0)
    assert any(
        not torch.equal(states[0][name][key], states[1][name][key]) for name in states[0] for key in states[0][name]
    )


def test_what_knows_its_training_frames_by_heart_is_told_from_what_does_not(fleet):
    _, data, models = fleet
    name = next(iter(data))
    part = with_teacher(data[name], models[name])
    assert overfit_fraction(part, models[name]) == 0
    wrong = [
        Classified(part.query.model.classes[answer.label == part.query.model.classes[0]], ())
        for answer in part.splits["validation"].answers
    ]
    turned = replace(
        part, splits=part.splits | {"validation": replace(part.splits["validation"], answers=tuple(wrong))}
    )
    assert overfit_fraction(turned, models[name]) == 1


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


@pytest.mark.parametrize(("recipe", "objective"), [("ours", "labels"), ("ours", "both"), ("paper", "labels")])
def test_the_baseline_recipe_and_hard_labels_train_too(fleet, recipe, objective):
    found, data, models = fleet
    options = RetrainOptions(max_steps=4, validate_every=2, start="member", recipe=recipe, objective=objective)
    seen = list(
        JointRetraining({n: copy.deepcopy(m) for n, m in models.items()}, data, everything(found), options).run()
    )
    assert seen[-1].verdict is not None
    assert all(0 <= score.estimate <= 1 for score in seen[-1].scores.values())


def test_who_is_further_from_its_original_counts_for_more(fleet):
    found, data, models = fleet
    fresh = {name: copy.deepcopy(model) for name, model in models.items()}
    retraining = JointRetraining(fresh, data, everything(found), RetrainOptions(max_steps=4))
    far, near = (query.name for query in found.queries)
    retraining._weigh({far: Score("", 0.7, 0.6, 10), near: Score("", 0.9, 0.8, 10)})
    assert retraining._loss_weights == pytest.approx({far: 1.5, near: 0.5})
    retraining._weigh({far: Score("", 0.0, 0.0, 10), near: Score("", 1.0, 1.0, 10)})
    assert retraining._loss_weights == pytest.approx({far: 2 / 1.002, near: 1 / 3}, abs=0.01)


def test_a_target_may_be_held_against_accuracy_on_labels(fleet, tmp_path):
    """A merged model that answers right where its original erred has lost nothing then."""
    found, data, models = fleet
    store = open_store(str(tmp_path), create=True)
    start = publish_originals(store, found, models, seed=0)
    candidate = Candidate(
        number=0, label="all", configuration=everything(found), max_steps=0, start_release=start.release, gate_margin=1
    )
    judged = {
        name: replace(part, query=part.query.model_copy(update={"judged_by": "labels", "accuracy_target": 0.3}))
        for name, part in data.items()
    }
    trial = Trial(candidate, judged, store)
    (last,) = trial.run()
    accuracies = trial.outcome(last).accuracies
    for name, accuracy in accuracies.items():
        assert last.scores[name].measure == RELATIVE
        assert accuracy.held == (accuracy.relative_accuracy, accuracy.relative_lower_bound)
        assert accuracy.relative_accuracy == pytest.approx(accuracy.merged_accuracy / accuracy.original_accuracy)
        assert accuracy.relative_lower_bound < accuracy.relative_accuracy

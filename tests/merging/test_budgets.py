"""What a search may spend, as a user says it and as the policy counts it."""

from pathlib import Path

import numpy as np
import pytest

from gemel_ray.merging.options import SearchOptions, bounded, initial_states
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.data import QueryData, SplitData
from gemel_ray.training.releases import publish_originals
from gemel_ray.vision.models import build_model
from gemel_ray.weights.store import open_store

ARCHITECTURES = {"a": "squeezenet1_1", "b": "squeezenet1_1", "c": "mobilenet_v3_small", "d": "mobilenet_v3_small"}


@pytest.fixture(scope="module")
def workload():
    queries = [
        {"name": name, "feed": "f", "model": {"architecture": kind, "classes": ["x", "y"], "input_size": 32}}
        for name, kind in ARCHITECTURES.items()
    ]
    feeds = {"f": {"kind": "streets", "frames": 100}}
    return parse_workload({"name": "w", "feeds": feeds, "queries": queries}, source="w", base=Path())


def frames_of(workload, counts):
    def data(query, count):
        return QueryData(query, {"train": SplitData(np.zeros((count, 2, 2, 3), np.uint8), np.zeros(count, int))})

    return {query.name: data(query, count) for query, count in zip(workload.queries, counts, strict=True)}


def test_epochs_are_passes_over_the_longest_feed_and_divided_among_sets(workload, tmp_path):
    options = bounded(SearchOptions(epochs=2.5, paper=True), frames_of(workload, [320, 640, 32, 32]))
    assert options.settings.most_steps == 50
    models = {query.name: build_model(query.model) for query in workload.queries}
    start: Manifest = publish_originals(open_store(str(tmp_path), create=True), workload, models, seed=0)
    states = initial_states(workload, models, start, options)
    assert [(state.name, state.settings.most_steps, state.settings.max_trials) for state in states] == [
        ("a", 25, 20),
        ("c", 25, 20),
    ]


def test_nothing_is_tried_with_what_is_left_out(workload, tmp_path):
    models = {query.name: build_model(query.model) for query in workload.queries}
    start: Manifest = publish_originals(open_store(str(tmp_path), create=True), workload, models, seed=0)
    (state,) = initial_states(workload, models, start, SearchOptions(paper=True), ["c"])
    members = {ref.query for layer in (*state.groups, *state.relatives) for ref in layer.members}
    assert members == {"a", "b"}
    states = initial_states(workload, models, start, SearchOptions(), ["c"])
    assert {state.name for state in states} == {"a", "d"}


def test_what_shares_already_is_not_left_out_of_what_it_shares(workload, tmp_path):
    models = {query.name: build_model(query.model) for query in workload.queries}
    start: Manifest = publish_originals(open_store(str(tmp_path), create=True), workload, models, seed=0)
    groups = initial_states(workload, models, start, SearchOptions(paper=True))[1].groups
    merged = start.model_copy(update={"merge_configuration": MergeConfiguration(shared=groups[:1])})
    states = initial_states(workload, models, merged, SearchOptions(paper=True), ["c"])
    assert {state.name: state.accepted.queries for state in states} == {"a": (), "c": ("c", "d")}


def test_without_a_bound_steps_are_not_counted(workload):
    assert bounded(SearchOptions(), frames_of(workload, [40] * 4)).settings.most_steps is None


def test_slices_are_searched_unless_they_are_switched_off_or_cannot_join_what_is_shared(workload, tmp_path):
    models = {query.name: build_model(query.model) for query in workload.queries}
    start: Manifest = publish_originals(open_store(str(tmp_path), create=True), workload, models, seed=0)
    for state in initial_states(workload, models, start, SearchOptions()):
        assert any(layer.extents for layer in state.widest)
        assert sum(layer.saved_bytes for layer in state.widest) > sum(layer.saved_bytes for layer in state.beyond)
    for options in (SearchOptions(slices=False), SearchOptions(paper=True)):
        assert not any(state.widest for state in initial_states(workload, models, start, options))

"""A search in progress: outcomes in any order, driver deaths, published winners."""

import itertools

import pytest
import torch
from progress_kit import outcome_for, workload

from gemel_ray.merging.progress import Progress
from gemel_ray.policy.grouping import group_layers, group_slices, independent_sets
from gemel_ray.policy.search import begin
from gemel_ray.policy.search_state import PHASES, SearchSettings
from gemel_ray.spec.errors import SearchError
from gemel_ray.spec.trials import Outcome
from gemel_ray.training.releases import publish_originals
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.models import build_model
from gemel_ray.weights.maintenance import revert_queries
from gemel_ray.weights.models import BlobReader, load_state
from gemel_ray.weights.store import open_store


@pytest.fixture
def started(tmp_path):
    torch.manual_seed(0)
    found = workload()
    store = open_store(tmp_path / "store", create=True)
    models = {query.name: build_model(query.model) for query in found.queries}
    originals = publish_originals(store, found, models, seed=0)
    groups = group_layers(analyze(found).inventories)
    state = begin(groups, release=originals.release, settings=SearchSettings(max_trials=12, max_steps=5))
    return store, models, Progress(store, "search", [state], root=originals.release)


def test_the_winner_is_published_whatever_order_outcomes_come_in(started):
    store, models, progress = started
    candidates = list(iter(progress.next_candidate, None))
    assert len(candidates) == 2
    for candidate in reversed(candidates):
        progress.take(candidate, outcome_for(store, models, candidate, passed=candidate is candidates[-1]))
    manifest = store.manifest()
    assert manifest.release == 2
    assert manifest.merge_configuration == candidates[-1].configuration
    assert manifest.bytes_before - manifest.bytes_after == manifest.merge_configuration.saved_bytes
    assert store.verify() == []


def test_a_search_taken_up_again_repeats_only_what_had_no_outcome(started):
    store, models, progress = started
    first, second = iter(progress.next_candidate, None)
    progress.take(first, outcome_for(store, models, first, passed=False))
    again = Progress.resume(store, "search")
    assert [c.number for c in iter(again.next_candidate, None)] == [second.number]
    again.take(second, outcome_for(store, models, second, passed=True))
    assert store.manifest().merge_configuration == second.configuration
    assert [line["passed"] for line in again.history] == [False, True]


@pytest.mark.parametrize(("key", "value", "named"), [("failed", {"a": ["x"]}, "failed.a"), ("phase", "rest", "phase")])
def test_a_state_of_another_version_is_named(started, key, value, named):
    store, _models, progress = started
    progress.save()
    saved = store.read_state("search")
    saved["states"][0][key] = value
    store.write_state("search", saved)
    with pytest.raises(SearchError, match=f"see '{named}'.*search again without --resume"):
        Progress.resume(store, "search")
    store.write_state("search", {"states": []})
    with pytest.raises(SearchError, match="see 'outcomes'"):
        Progress.resume(store, "search")


def test_where_nothing_passed_the_nearest_is_named(started):
    _store, _models, progress = started
    assert progress.nearest() is None
    shortfalls = iter([0.2, 0.004, *[0.3] * 100])
    while not progress.is_finished:
        candidate = progress.next_candidate()
        failed = {"passed": False, "reason": "missed on validation", "objectors": ("a",)}
        progress.take(candidate, Outcome(candidate=candidate.number, shortfall=next(shortfalls), **failed))
    assert (
        f"Nearest came {progress.history[1]['label']!r}: missed on validation, the worst of a 0.004"
        in progress.nearest()
    )
    assert "--gate-margin" not in progress.nearest()
    progress.history[1]["gate"] = {"a": 0.9}
    assert "More --steps, a larger --gate-margin, more frames or" in progress.nearest()
    progress.history[2]["passed"] = True
    assert progress.nearest() is None


def test_what_can_change_nothing_any_more_is_not_tried(started):
    store, models, progress = started
    first = progress.next_candidate()
    progress.take(first, outcome_for(store, models, first, passed=True))
    assert store.manifest().merge_configuration == first.configuration
    assert progress.next_candidate() is None
    assert progress.is_finished


def test_the_next_round_is_handed_out_as_soon_as_what_is_left_of_this_one_is_superseded(started):
    store, models, progress = started
    candidates = list(iter(progress.next_candidate, None))
    for candidate in candidates:
        progress.take(candidate, outcome_for(store, models, candidate, passed=False))
    leap = progress.next_candidate()
    progress.take(leap, outcome_for(store, models, leap, passed=False))
    cautious = progress.next_candidate()
    progress.take(cautious, outcome_for(store, models, cautious, passed=True))
    # The rest is tried without anybody having to ask twice.
    assert progress.next_candidate().label.startswith("divide")


def test_sets_that_share_nothing_are_searched_side_by_side_and_published_on_top_of_each_other(tmp_path):
    torch.manual_seed(0)
    found = workload(a="squeezenet1_1", b="squeezenet1_1", c="mobilenet_v3_small", d="mobilenet_v3_small")
    store = open_store(tmp_path / "store", create=True)
    models = {query.name: build_model(query.model) for query in found.queries}
    originals = publish_originals(store, found, models, seed=0)
    groups = group_layers(analyze(found).inventories)
    sets = independent_sets(groups)
    assert sets == (frozenset("ab"), frozenset("cd"))
    settings = SearchSettings(max_trials=4, max_steps=5)
    states = [
        begin(
            [group for group in groups if queries.issuperset(group.queries)],
            release=originals.release, settings=settings, name=min(queries),
        )
        for queries in sets
    ]  # fmt: skip
    progress = Progress(store, "search", states, root=originals.release)
    while (candidate := progress.next_candidate()) is not None:
        progress.take(candidate, outcome_for(store, models, candidate, passed=True))
    assert progress.is_finished
    manifest = progress.latest()
    assert manifest.merge_configuration.queries == ("a", "b", "c", "d")
    assert manifest.merge_configuration.saved_bytes == sum(group.saved_bytes for group in groups)
    assert Progress.resume(store, "search").latest() == manifest
    assert store.verify() == []


def test_a_driver_that_dies_right_after_publishing_publishes_only_once(started):
    store, models, progress = started
    first, second = iter(progress.next_candidate, None)
    progress.take(first, outcome_for(store, models, first, passed=True))
    saved = store.read_state("search")
    progress.take(second, outcome_for(store, models, second, passed=False))
    assert store.releases() == [1, 2]
    store.write_state("search", saved)  # as if the death came before the new state was written down
    again = Progress.resume(store, "search")
    again.take(second, outcome_for(store, models, second, passed=False))
    assert store.releases() == [1, 2]
    assert again.states == progress.states


def test_a_search_ends_when_nothing_passes_and_head_stays_at_the_originals(started):
    store, models, progress = started
    for _ in itertools.takewhile(lambda _: not progress.is_finished, itertools.count()):
        candidate = progress.next_candidate()
        progress.take(candidate, outcome_for(store, models, candidate, passed=False))
    assert store.head() == 1
    assert Progress.resume(store, "search").is_finished


def test_an_outcome_reported_twice_counts_once(started):
    store, models, progress = started
    first, _ = iter(progress.next_candidate, None)
    outcome = outcome_for(store, models, first, passed=False)
    progress.take(first, outcome)
    progress.take(first, outcome)
    assert store.releases() == [1]


def test_wholes_of_all_sets_come_before_parts_of_any_and_parts_by_what_they_save(tmp_path):
    torch.manual_seed(0)
    found = workload(a="squeezenet1_1", b="squeezenet1_1", c="mobilenet_v3_small", d="mobilenet_v3_small")
    store = open_store(tmp_path / "store", create=True)
    originals = publish_originals(store, found, {q.name: build_model(q.model) for q in found.queries}, seed=0)
    groups = group_layers(analyze(found).inventories)
    settings = SearchSettings(max_trials=6, max_steps=5, side_by_side=1)
    states = [
        begin([g for g in groups if set(g.queries) <= queries], name=min(queries), release=1, settings=settings)
        for queries in independent_sets(groups)
    ]
    progress, tried = Progress(store, "search", states, root=originals.release), []
    while (candidate := progress.next_candidate()) is not None:
        tried.append(candidate)
        progress.take(candidate, Outcome(candidate=candidate.number, passed=False, reason="missed on validation"))
    phases = [candidate.label.split()[0] for candidate in tried]
    assert phases == sorted(phases, key=PHASES.index)
    assert [candidate.model_set for candidate in tried if "leap" in candidate.label] == ["c", "c", "a", "a"]
    parts = [candidate for candidate in tried if "divide" in candidate.label]
    assert [each.configuration.saved_bytes for each in parts] == sorted(
        (each.configuration.saved_bytes for each in parts), reverse=True
    )


def test_a_release_says_which_of_its_weights_are_slices_and_a_reverted_query_has_none(tmp_path):
    torch.manual_seed(0)
    found = workload(a="squeezenet1_1", b="squeezenet1_1")
    store = open_store(tmp_path / "store", create=True)
    models = {query.name: build_model(query.model) for query in found.queries}
    originals = publish_originals(store, found, models, seed=0)
    inventories = analyze(found).inventories
    state = begin((), beyond=(), widest=group_slices(inventories), release=1, settings=SearchSettings(max_steps=5))
    progress = Progress(store, "search", [state], root=originals.release)
    candidate = progress.next_candidate()
    progress.take(candidate, outcome_for(store, models, candidate, passed=True))
    merged = store.manifest()
    assert merged.merge_configuration == candidate.configuration
    assert merged.bytes_before - merged.bytes_after == candidate.configuration.saved_bytes
    for query, model in models.items():
        released = merged.queries[query]
        assert released.slices
        state = load_state(BlobReader(store), released.weights, released.slices)
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    reverted = revert_queries(store, ["a"])
    assert reverted.queries["a"].slices == {}
    assert reverted.queries["b"].slices == merged.queries["b"].slices
    assert store.verify() == []

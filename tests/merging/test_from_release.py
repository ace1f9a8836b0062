"""Going on from a release: whose releases are whose, what is asked, and what HEAD becomes."""

import pytest
import torch
from progress_kit import outcome_for, workload
from safetensors.torch import save_file

from gemel_ray.merging.options import SearchOptions
from gemel_ray.merging.searching import _begun, _originals, _resumed
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.errors import InputError
from gemel_ray.vision.models import build_model
from gemel_ray.weights.store import open_store

SETTINGS = SearchSettings(max_trials=12, max_steps=5, gate_margin=0.1)


@pytest.fixture
def found(tmp_path):
    """A workload of two models with weights on disk."""
    plain, queries = workload(), []
    for query in plain.queries:
        weights = tmp_path / f"{query.name}.safetensors"
        queries.append(query.model_copy(update={"model": query.model.model_copy(update={"weights": str(weights)})}))
    made = plain.model_copy(update={"queries": tuple(queries)})
    write_weights(made, seed=0)
    return made


def write_weights(found, seed):
    torch.manual_seed(seed)
    for query in found.queries:
        save_file(build_model(query.model).state_dict(), query.model.weights)


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store", create=True)


def started(store, found, **options):
    asked = SearchOptions(settings=SETTINGS, paper=True, **options)
    models = _originals(found, store, asked, None)
    return _begun(found, store, models, asked, []), models


def won(store, found, nth, *, scale=1.0, **options):
    """A search whose candidate at that place passes, with weights of its own, and none of those after it."""
    progress, models = started(store, found, **options)
    with torch.no_grad():
        for tensor in (tensor for model in models.values() for tensor in model.parameters()):
            tensor.mul_(scale)
    for place, candidate in enumerate(iter(progress.next_candidate, None)):
        if progress.latest().release != progress.root:
            break
        progress.take(candidate, outcome_for(store, models, candidate, passed=place == nth))
    return progress


def test_each_search_from_a_release_has_releases_of_its_own(store, found):
    merged = won(store, found, 1).latest()
    searches = [won(store, found, 2, scale=scale, from_release=merged.release) for scale in (1.01, 1.02)]
    for progress in searches:
        root, latest = store.manifest(progress.root), progress.latest()
        assert (root.parent, root.bytes_after) == (merged.release, merged.bytes_after)
        assert latest.parent == root.release
    first, second = (progress.latest().queries["a"].weights for progress in searches)
    assert first != second, "each published what passed in it"


def test_head_moves_only_to_what_takes_less_memory(store, found):
    less = won(store, found, 1).latest()
    best = won(store, found.model_copy(update={"name": "v"}), 0).latest()
    assert (store.head(), best.bytes_after < less.bytes_after) == (best.release, True)
    again = won(store, found, 3, from_release=less.release).latest()
    assert again.bytes_after > best.bytes_after
    assert store.head() == best.release


def test_what_was_taken_apart_is_served_though_head_saves_more(store, found):
    """HEAD shares what has drifted."""
    best = won(store, found, 0).latest()
    again = won(store, found, 1, from_release=best.release, apart=("a",)).latest()
    assert again.bytes_after > best.bytes_after
    assert store.head() == again.release


def test_a_release_asks_what_the_workload_asks_now(store, found):
    strict = found.aimed_at(0.9)
    merged = won(store, strict, 1).latest()
    lower = found.aimed_at(0.8)
    root = store.manifest(started(store, lower, from_release=merged.release)[0].root)
    assert root.workload_hash == lower.content_hash()
    assert {released.query.accuracy_target for released in root.queries.values()} == {0.8}
    assert {released.agreement_target for released in root.queries.values()} == {0.8}
    assert {released.accuracy.target for released in root.queries.values()} == {0.8}
    assert store.head() == merged.release
    faster = strict.model_copy(update={"queries": tuple(q.model_copy(update={"fps": 5.0}) for q in strict.queries)})
    asked = started(store, faster, from_release=merged.release)[0].root
    assert store.head() == asked, "so that five frames a second are planned for"


def test_a_higher_target_than_was_met_is_refused(store, found):
    merged = won(store, found.aimed_at(0.9), 0).latest()
    before, more = store.releases(), found.aimed_at(0.99)
    strict = SearchOptions(settings=SearchSettings(gate_margin=0.05), from_release=merged.release, apart=("b",))
    told = r"query 'a': release 2 met 0\.9 by agreement with 1\.000, surely 0\.900, .* asks for 0\.99 .*\(--apart a\)"
    with pytest.raises(InputError, match=told):
        _begun(more, store, _originals(more, store, strict, None), strict, [])
    assert store.releases() == before


def test_a_search_is_not_taken_up_with_other_originals(store, found):
    progress = won(store, found, 1)
    again = SearchOptions(settings=SETTINGS, paper=True, resume=True)
    assert _originals(found, store, again, progress).keys() == {"a", "b"}
    write_weights(found, seed=1)
    with pytest.raises(
        InputError, match=r"query 'a': its weights .*a\.safetensors are not those .* \(release 1\); put"
    ):
        _originals(found, store, again, progress)


def test_a_search_from_a_release_is_taken_up_with_the_originals_of_the_store(store, found):
    merged, told = won(store, found, 1).latest(), []
    started(store, found, from_release=merged.release, apart=("a",))
    write_weights(found, seed=1)
    again = SearchOptions(settings=SETTINGS, paper=True, resume=True)
    progress = _resumed(found, store, again, told.append)
    assert told == [
        "--resume goes on as it was begun: --from-release 2, not None",
        "--resume goes on as it was begun: --apart a, not None",
    ]
    torch.manual_seed(0)
    before = build_model(found.queries[0].model).state_dict()
    models = _originals(found, store, again, progress)
    assert all(torch.equal(tensor, models["a"].state_dict()[key]) for key, tensor in before.items())

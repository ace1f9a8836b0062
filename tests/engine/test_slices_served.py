"""A release whose smaller layers are slices of larger ones: one copy on the device, answers as computed directly."""

import pytest
from served import assert_answers_as_computed_directly
from tiny_release import CLASSIFIERS, publish_tiny_release

from gemel_ray.engine.engine import Engine
from gemel_ray.policy.sharing import as_released, models_of, whole_models
from gemel_ray.spec.errors import ModelError
from gemel_ray.vision.binding import distinct_bytes
from gemel_ray.vision.exporting import export_query
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.store import open_store


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("sliced") / "store", sliced=True)


@pytest.fixture
def cache(sliced, tmp_path):
    found = LocalCache(open_store(sliced.store), tmp_path / "cache")
    found.bring(sliced.manifest)
    return found


def test_the_release_weighs_what_the_bound_models_do(sliced):
    manifest = sliced.manifest
    assert manifest.bytes_after == distinct_bytes(sliced.models.values())
    assert manifest.bytes_before - manifest.bytes_after == manifest.merge_configuration.saved_bytes
    assert manifest.bytes_after < 0.25 * manifest.bytes_before
    assert any(manifest.queries[query].slices for query in CLASSIFIERS)


def test_answers_equal_a_direct_forward_pass_while_weights_come_and_go(sliced, cache):
    # Two kinds of models in a budget that holds the common copies, but not everything beside them.
    budget_bytes = max(sliced.bytes_of(query) for query in CLASSIFIERS) + (1 << 20)
    assert_answers_as_computed_directly(sliced, cache, budget_bytes)


def test_a_slice_that_does_not_fit_the_model_is_named(sliced, cache):
    query = next(name for name in CLASSIFIERS if sliced.manifest.queries[name].slices)
    released = sliced.manifest.queries[query]
    path = next(iter(released.slices))
    narrow = {name: (1, *shape[1:]) for name, shape in released.slices[path].items()}
    wrong = released.model_copy(update={"slices": released.slices | {path: narrow}})
    manifest = sliced.manifest.model_copy(update={"queries": sliced.manifest.queries | {query: wrong}})
    engine = Engine(budget_bytes=manifest.bytes_after * 2, device="cpu", threads=1)
    with pytest.raises(ModelError, match=rf"{query}.*{path}.*\(1, .*in the release"):
        engine.start(manifest, cache.fetch)


def test_unmerged_forms_of_a_release_count_what_each_model_weighs_by_itself(sliced):
    models = models_of(sliced.manifest)
    assert whole_models(models).total_bytes == sliced.manifest.bytes_before
    assert as_released(models).total_bytes == sliced.manifest.bytes_after


def test_a_sliced_model_can_be_taken_out_whole(sliced, tmp_path):
    # Exporting checks the written model against the release's own.
    query = next(name for name in CLASSIFIERS if sliced.manifest.queries[name].slices)
    exported = export_query(open_store(sliced.store), query, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size == exported.file_bytes

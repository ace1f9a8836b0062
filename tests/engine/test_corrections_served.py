"""A release whose shared layers keep private corrections: one copy on the device, answers as computed directly."""

import pytest
import torch
from safetensors.torch import load_file
from served import assert_answers_as_computed_directly
from tiny_release import CLASSIFIERS, publish_tiny_release

from gemel_ray.vision.exporting import export_query
from gemel_ray.vision.models import build_model
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.models import BlobReader, load_state
from gemel_ray.weights.store import open_store

RANK = 3


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("corrected") / "store", rank=RANK)


def test_answers_equal_a_direct_forward_pass(corrected, tmp_path):
    store = open_store(corrected.store)
    cache = LocalCache(store, tmp_path / "cache")
    cache.bring(corrected.manifest)
    assert_answers_as_computed_directly(corrected, cache, 0.8 * corrected.manifest.bytes_after)


def test_the_release_holds_one_copy_and_a_correction_for_each(corrected):
    manifest, read = corrected.manifest, BlobReader(open_store(corrected.store))
    states = {query: load_state(read, manifest.queries[query].weights, {}) for query in CLASSIFIERS}
    for layer in manifest.merge_configuration.shared:
        one, other = (states[member.query] for member in layer.members)
        path = layer.members[0].layer
        assert one[f"{path}.weight"] is other[f"{path}.weight"]
        assert one[f"{path}.delta_down.weight"].shape[0] == RANK
        assert not torch.equal(one[f"{path}.delta_up.weight"], other[f"{path}.delta_up.weight"])
    assert manifest.bytes_before - manifest.bytes_after == manifest.merge_configuration.saved_bytes


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt2"])
def test_a_corrected_model_can_be_taken_out(corrected, tmp_path, name):
    # Exporting checks the written model against the release's own.
    exported = export_query(open_store(corrected.store), "north_cars", tmp_path / name)
    assert (tmp_path / name).stat().st_size == exported.file_bytes


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_corrected_model_leaves_as_a_state_dict_of_the_bare_model(corrected, tmp_path, ending):
    store, out = open_store(corrected.store), tmp_path / f"model.{ending}"
    export_query(store, "north_cars", out)
    spec = store.manifest().queries["north_cars"].query.model
    plain = build_model(spec)
    plain.load_state_dict(load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True))
    torch.manual_seed(1)
    frames = torch.randn(2, 3, spec.input_size, spec.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(plain(frames), corrected.models["north_cars"](frames), rtol=1e-4, atol=1e-4)

"""A model of many light layers, stored in pieces: served as the plain model, piece by piece."""

from itertools import pairwise
from pathlib import Path

import pytest
from edge_plans import profile_of
from tiny_release import publish_tiny_release

from gemel_ray.engine.blobs import open_blobs
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.policy.released import released_plans
from gemel_ray.spec.profile import QueryProfile
from gemel_ray.weights.store import open_store

DOGS = "yard_dogs"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("pieces") / "store", (DOGS,))


def resident(tiny, device):
    """The release's one skeleton, its blobs, and a residence with all of them."""
    store, residence = open_store(tiny.store), Residence(device)
    blobs = open_blobs(tiny.manifest, lambda sha: Path(store.locate_blob(sha)))
    for sha, blob in blobs.items():
        residence.load(sha, blob, blob.data_bytes)
    return build_skeletons(tiny.manifest, blobs, device)[DOGS], blobs, residence


def test_pieces_are_needed_one_after_the_other(tiny, frame_of, device):
    skeleton, blobs, residence = resident(tiny, device)
    assert len(blobs) > 1
    first_use = skeleton.first_uses([frame_of()], residence)
    watched = QueryProfile(run_ms={1: 5.0}, workspace_bytes={1: 2**20}, first_use=first_use)
    profile = profile_of([DOGS]).model_copy(update={"queries": {DOGS: watched}})
    plan = released_plans(tiny.manifest, profile, "ours_released", budget_bytes=10**9)[0].plan
    (query,) = plan.queries
    pieces = list(tiny.manifest.queries[DOGS].weights.values())
    assert query.weights == tuple(pieces)
    assert all(query.needed_after[one] < query.needed_after[other] for one, other in pairwise(pieces))


def test_one_piece_gone_and_back_a_model_answers_as_the_plain_one(tiny, frame_of, device):
    skeleton, blobs, residence = resident(tiny, device)
    (expected,) = tiny.direct(DOGS, [frame_of()])
    for sha, blob in blobs.items():
        residence.evict(sha)
        residence.load(sha, blob, blob.data_bytes)
        (found,) = skeleton.answers([frame_of()], residence)
        assert found.label == expected.label
        assert found.scores == pytest.approx(expected.scores, abs=1e-4)

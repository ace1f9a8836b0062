"""Comparing releases, and going back to earlier weights."""

import contextlib
import threading
from pathlib import Path

import pytest
from family_kit import ORIGINALS, publish_family, release, shared
from weights_kit import blob_file

from gemel_ray.spec.errors import CorruptBlobError, InputError, MissingBlobError, MissingReleaseError, StoreError
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.training.releases import provenance
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.comparison import diff_releases
from gemel_ray.weights.following import Follower
from gemel_ray.weights.garbage import collect_garbage
from gemel_ray.weights.maintenance import (
    pin,
    revert_head,
    revert_queries,
    revert_served,
    unpin,
)
from gemel_ray.weights.store import open_store


@pytest.fixture
def family(store):
    return publish_family(store)


# diff


def test_a_diff_tells_which_layers_share_now_and_what_an_edge_box_fetches(family):
    found = diff_releases(family.manifest(2), family.manifest(3))
    (row,) = found.share_now
    assert (row.members, row.copies_before, row.copies_after) == (("boxes:c1", "cars:c1", "people:c1"), 2, 1)
    assert found.share_no_longer == ()
    new = [b"cars three", b"people three", b"boxes three", b"c1new"]
    assert (found.fetch_blobs, found.fetch_file_bytes) == (4, sum(len(data) + 3 for data in new))
    assert found.kept_blobs == 1
    boxes = next(query for query in found.queries if query.query == "boxes")
    assert (boxes.state, boxes.changed, boxes.agreement_before, boxes.agreement_after) == (
        "changed", ("weights",), None, 0.93,
    )  # fmt: skip


def test_a_diff_backwards_is_the_same_the_other_way_round(family):
    there, back = (diff_releases(family.manifest(a), family.manifest(b)) for a, b in ((1, 3), (3, 1)))
    assert [(r.members, r.copies_before, r.copies_after) for r in there.share_now] == [
        (r.members, r.copies_after, r.copies_before) for r in back.share_no_longer
    ]
    assert len(there.share_now) == 2
    assert (there.share_no_longer, back.share_now) == ((), ())
    assert (there.bytes_before, there.bytes_after) == (back.bytes_after, back.bytes_before)


def test_a_diff_tells_queries_that_came_went_and_ask_something_else(family):
    asked = {name: ORIGINALS[name] for name in ("cars", "people")} | {"bikes": {"": b"bikes"}}
    release(family, asked, fps=20)
    states = {
        row.query: (row.state, row.changed) for row in diff_releases(family.manifest(1), family.manifest(4)).queries
    }
    asked_anew = ("changed", ("fps",))
    assert states == {"cars": asked_anew, "people": asked_anew, "boxes": ("removed", ()), "bikes": ("added", ())}


def test_a_release_does_not_differ_from_itself(family):
    found = diff_releases(family.manifest(3), family.manifest(3))
    assert {row.state for row in found.queries} == {"unchanged"}
    assert (found.share_now, found.share_no_longer, found.fetch_blobs, found.fetch_file_bytes) == ((), (), 0, 0)


# revert


def test_a_revert_goes_back_to_the_parent_and_to_any_release_named(family):
    assert revert_head(family).release == 2 == family.head()
    assert revert_head(family).release == 1 == family.head()
    assert revert_head(family, 3).release == 3 == family.head()


def test_where_there_is_nothing_to_go_back_to_the_releases_are_named(family):
    with pytest.raises(MissingReleaseError, match=r"has no release 9; it holds \[1, 2, 3\]"):
        revert_head(family, 9)
    family.set_head(1)
    with pytest.raises(MissingReleaseError, match=r"release 1, which has no parent; say --to with one of \[1, 2, 3\]"):
        revert_head(family)


def test_head_never_goes_back_to_a_release_that_lost_a_blob(family):
    blob_file(family, family.manifest(2).queries["cars"].weights[""]).unlink()
    with pytest.raises(MissingBlobError, match="release 2 needs it; HEAD stays"):
        revert_head(family)
    assert family.head() == 3


@pytest.mark.parametrize("left", [b"", b"cars mer"])
def test_neither_head_nor_a_pin_goes_to_a_release_with_a_truncated_blob(family, left):
    blob_file(family, family.manifest(2).queries["cars"].weights[""]).write_bytes(left)
    with pytest.raises(CorruptBlobError, match="is damaged, and release 2 needs it; HEAD stays"):
        revert_head(family, 2)
    with pytest.raises(CorruptBlobError, match="is damaged, and release 2 needs it; it was not pinned"):
        pin(family, 2)
    assert (family.head(), family.pinned()) == (3, None)


def test_a_reverted_query_runs_its_original_and_the_others_what_they_ran(family):
    made = revert_queries(family, ["people"])
    originals, former = family.manifest(1), family.manifest(3)
    assert (made.release, made.parent, family.head()) == (4, 3, 4)
    assert made.queries["people"].weights == originals.queries["people"].weights
    assert made.queries["people"].accuracy is None
    assert {name: made.queries[name] for name in ("cars", "boxes")} == {
        name: former.queries[name] for name in ("cars", "boxes")
    }
    # One layer is left with two members; the other, with one, shares nothing any more.
    assert made.merge_configuration == MergeConfiguration(shared=(shared("c1", "boxes", "cars"),))
    held = [b"people itself", b"cars three", b"boxes three", b"c1new", b"c2 of"]
    assert made.bytes_after == sum(map(len, held))
    assert family.verify() == []


def test_a_revert_writes_down_what_it_did(family):
    told = revert_queries(family, ["people", "cars"], base=2).provenance
    assert told.note == "reverted to their originals: people, cars"
    assert told.trial == {"reverted": "people, cars", "base": 2, "originals": 1}
    assert told.seed == 5


def test_the_command_that_made_a_release_is_kept_without_its_keys(family, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gemel", "revert", "s3://key:secret@bucket/store"])
    made = (revert_queries(family, ["people"]).provenance, provenance(seed=0, note="originals"))
    assert [each.command for each in made] == ["gemel revert s3://bucket/store"] * 2


def test_reverting_every_query_gives_the_originals_bytes(family):
    made = revert_queries(family, list(ORIGINALS))
    assert (made.bytes_after, made.blobs) == (family.manifest(1).bytes_after, family.manifest(1).blobs)
    assert made.merge_configuration == MergeConfiguration()


def test_a_query_that_does_not_exist_is_told_with_the_nearest_one(family):
    with pytest.raises(InputError, match=r"^query 'car': release 3 has none of that name; did you mean 'cars'"):
        revert_queries(family, ["people", "car"])
    assert family.releases() == [1, 2, 3]


def test_a_query_that_runs_its_original_is_not_reverted_once_more(family):
    with pytest.raises(InputError, match=r"^query boxes: runs its original in release 2 already; nothing"):
        revert_queries(family, ["boxes"], base=2)
    assert family.releases() == [1, 2, 3]


def test_of_two_who_revert_at_once_neither_is_lost(family):
    begin, stores = threading.Barrier(2), [open_store(family.locate()) for _ in range(2)]

    def revert(store, query):
        begin.wait()
        revert_queries(store, [query])

    for _ in range(5):
        family.set_head(3)
        both = [threading.Thread(target=revert, args=pair) for pair in zip(stores, ("cars", "people"), strict=True)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        head = family.manifest()
        assert {name for name in ("cars", "people") if head.queries[name].weights == _original(family, name)} == {
            "cars", "people",
        }  # fmt: skip


def _original(store, name):
    return store.manifest(1).queries[name].weights


def test_where_head_moves_on_an_object_store_the_revert_is_made_of_the_new_one(family, monkeypatch):
    # Nobody is kept out there.
    monkeypatch.setattr(family, "exclusively", lambda: contextlib.nullcontext(True))
    read = family.lineage

    def while_somebody_else_publishes(number):
        monkeypatch.setattr(family, "lineage", read)
        revert_queries(open_store(family.locate()), ["people"])
        return read(number)

    monkeypatch.setattr(family, "lineage", while_somebody_else_publishes)
    made = revert_queries(family, ["cars"])
    assert (made.release, made.parent, family.head()) == (5, 4, 5)
    assert made.queries["people"].weights == _original(family, "people")


def test_of_what_a_box_serves_a_query_is_reverted_unless_head_has_other_weights_of_it(family):
    assert revert_served(family, family.manifest(2), "cars") is None
    assert (revert_served(family, family.manifest(3), "cars").release, family.head()) == (4, 4)
    assert revert_served(family, family.manifest(3), "cars") is None
    assert family.releases() == [1, 2, 3, 4]


def test_where_the_originals_release_was_lost_that_is_said(family):
    Path(family.locate("releases/000001.json")).unlink()
    with pytest.raises(MissingReleaseError, match=r"release 1, from which release 3 descends, is gone.*\[2, 3\]"):
        revert_queries(family, ["cars"])


# pin


def test_a_pinned_release_is_to_be_served_whatever_is_published_until_it_is_unpinned(family):
    assert (family.pinned(), family.wanted()) == (None, 3)
    assert pin(family, 2).release == 2 == family.wanted()
    release(family, ORIGINALS)
    assert (family.head(), family.wanted()) == (4, 2)
    assert unpin(family).release == 4 == family.wanted()
    assert family.pinned() is None
    assert pin(family).release == 4, "without a number, what is served now"


def test_what_is_pinned_must_be_there_whole(family):
    with pytest.raises(MissingReleaseError, match=r"has no release 9; it holds \[1, 2, 3\]"):
        pin(family, 9)
    blob_file(family, family.manifest(2).queries["cars"].weights[""]).unlink()
    with pytest.raises(MissingBlobError, match="release 2 needs it; it was not pinned"):
        pin(family, 2)
    assert family.wanted() == 3


def test_while_a_release_is_pinned_nobody_reverts(family):
    pin(family)
    for revert in (lambda: revert_head(family), lambda: revert_queries(family, ["cars"])):
        with pytest.raises(InputError, match="release 3 is pinned and stays; `gemel unpin` first"):
            revert()
    assert (family.releases(), family.head()) == ([1, 2, 3], 3)


def test_a_box_pulls_what_is_pinned_and_hears_when_it_is_not_any_more(family, tmp_path):
    pin(family, 2)
    follower = Follower(family.locate(), tmp_path / "box")
    assert (follower.news(None).release, follower.pinned) == (2, 2)
    assert LocalCache(family, tmp_path / "disk").read_manifest().release == 2
    release(family, ORIGINALS)
    assert follower.news(2) is None
    unpin(family)
    assert (follower.news(2).release, follower.pinned) == (4, None)


def test_a_pin_that_cannot_be_read_stops_followers_and_is_found(family, tmp_path):
    pin_file = Path(family.locate("PIN"))
    pin_file.write_text("two\n")
    with pytest.raises(StoreError, match="PIN says 'two', not a release number"):
        Follower(family.locate(), tmp_path / "box").news(None)
    assert [problem.path for problem in family.verify()] == ["PIN"]
    pin_file.write_text("9\n")
    assert "pins release 9, which does not exist" in family.verify()[0].what


def test_a_pinned_release_is_no_garbage(family):
    pin(family, 2)
    for _ in range(2):
        release(family, ORIGINALS)
    collect_garbage(family, keep=1, grace_hours=0)
    assert family.releases() == [1, 2, 5]
    assert family.verify() == []

"""Stores that are damaged: all of it is found, and nothing that may be needed is removed or served meanwhile."""

import json
from pathlib import Path

import pytest
from family_kit import grow_old, publish_family, release
from weights_kit import files_below

from gemel_ray.spec.errors import MissingReleaseError, StoreError
from gemel_ray.weights.garbage import collect_garbage
from gemel_ray.weights.maintenance import revert_head, revert_queries
from gemel_ray.weights.store import open_store


@pytest.fixture
def family(store):
    return publish_family(store)


def rewrite(store, number, **changed):
    """A manifest with other values, by hand."""
    file = Path(store.locate(f"releases/{number:06d}.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def write(store, name, text):
    file = Path(store.locate(name))
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def check_found(store, path, told):
    """`verify` finds it, and `gc` says so, removes nothing, and tells the same."""
    (problem,) = store.verify()
    assert problem.path == path
    assert told in problem.what
    check_gc_refuses(store)


def check_gc_refuses(store):
    grow_old(store)
    before = files_below(store.locate())
    for keep in (1, None):
        with pytest.raises(StoreError, match="nothing was removed"):
            collect_garbage(store, keep=keep, grace_hours=0)
    assert files_below(store.locate()) == before


@pytest.mark.parametrize(
    "state",
    [
        '{"root": "x"}', "{}", "null", "[[1, 2]]", '{"root": 1}', '{"root": 1, "states": [{}]}',
        '{"root": 1, "states": [{"release": 2, "round": 7}]}', '{"root": 1, "states": [{"release": "2", "round": []}]}',
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_understood_is_found_and_protects_everything(family, state):
    write(family, "searches/s.json", state)
    check_found(family, "searches/s.json", "remove it to start that search afresh")


@pytest.mark.parametrize(
    "text", ["[1", "{", '{"a": 1}', '{"2": "1"}', '{"2": 2}', '{"2": 3}', '{"²": 1}', "[]", "null"]
)
def test_a_damaged_lineage_is_found_and_told_with_the_way_out(family, text):
    write(family, "lineage.json", text)
    check_found(family, "lineage.json", "restore it from a copy of the store")
    with pytest.raises(StoreError, match=r"lineage\.json is damaged"):
        revert_queries(family, ["cars"])


@pytest.mark.parametrize("parent", [3, 4, 0, -1])
def test_a_release_made_from_none_that_was_before_it_is_found_and_keeps_the_originals(family, parent):
    rewrite(family, 3, parent=parent)
    check_found(family, "releases/000003.json", f"names release {parent} as its parent, which is no earlier one")
    for revert in (lambda: revert_head(family), lambda: revert_queries(family, ["cars"])):
        with pytest.raises(StoreError, match="which is no earlier one"):
            revert()
    assert (family.head(), family.releases()) == (3, [1, 2, 3])
    assert revert_head(family, 2).release == 2 == family.head()


def test_releases_made_from_each_other_are_found_and_keep_the_originals(family):
    rewrite(family, 2, parent=3)
    check_found(family, "releases/000002.json", "names release 3 as its parent")
    with pytest.raises(StoreError, match="which is no earlier one"):
        revert_queries(family, ["cars"])


def test_a_lost_parent_is_found_and_nothing_is_removed_until_somebody_says_that_it_is_gone(family):
    Path(family.locate("releases/000002.json")).unlink()
    check_found(family, "releases/000003.json", "its parent, release 2, is not there; copy releases/000002.json back")
    with pytest.raises(StoreError, match=r'release 2, from which release 3 descends.*write {"2": N} into lineage.json'):
        collect_garbage(family)
    write(family, "lineage.json", '{"2": 1}')
    assert family.verify() == []
    collect_garbage(family, keep=1, grace_hours=0)
    assert family.releases() == [1, 3]
    assert revert_queries(family, ["cars"]).parent == 3


@pytest.mark.parametrize("count", [0, -5])
def test_a_release_of_models_that_weigh_nothing_is_refused_and_found(family, count):
    rewrite(family, 2, bytes_before=count)
    check_found(family, "releases/000002.json", f"bytes_before: must be more than 0, got {count}")


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("HEAD", r"or write another number into HEAD \(`gemel revert --to N`\)"),
        ("PIN", r"or let it go \(`gemel unpin`\)"),
    ],
)
def test_who_names_a_release_that_is_not_there_is_told_with_the_way_out(family, name, way_out):
    write(family, name, "77\n")
    check_found(family, name, "release 77, which does not exist")
    told = rf"has no release 77, which {name} names; it holds \[1, 2, 3\]; copy releases/000077\.json back, {way_out}"
    with pytest.raises(MissingReleaseError, match=told):
        family.manifest(family.wanted())


def test_a_head_and_a_pin_that_are_both_wrong_are_both_found(family):
    write(family, "HEAD", "77\n")
    write(family, "PIN", "two\n")
    assert [problem.path for problem in family.verify()] == ["HEAD", "PIN"]


@pytest.mark.parametrize("number", [2, 3])
def test_without_the_release_before_head_those_that_can_be_read_are_named(family, number):
    rewrite(family, number, bytes_after="many")
    left = {2: r"\[1, 3\]", 3: r"\[1, 2\]"}[number]
    with pytest.raises(StoreError, match=rf"say --to with one of {left}\. .*00000{number}\.json is not a manifest"):
        revert_head(family)
    assert revert_head(family, 1).release == 1 == family.head()


def test_from_a_head_that_is_not_there_one_goes_to_a_release_that_is(family):
    write(family, "HEAD", "77\n")
    with pytest.raises(MissingReleaseError, match=r"say --to with one of \[1, 2, 3\]\. .*which HEAD names"):
        revert_head(family)
    assert revert_head(family, 2).release == 2 == family.head()


def test_a_store_without_head_is_cleaned_of_what_is_not_published(tmp_path):
    store = open_store(tmp_path / "new", create=True)
    store.put_blob(b"tried")
    assert len(collect_garbage(store, grace_hours=0).blobs) == 1
    release(store, {"cars": {"": b"cars"}})
    assert store.verify() == []

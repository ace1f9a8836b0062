"""Removing what nothing needs any more, also by processes that are killed meanwhile, and beside publishers."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from family_kit import PAIR, THREE, accuracy, grow_old, publish_family, release, shared
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs
from weights_kit import blob_file, files_below, publish

from gemel_ray.merging.progress import Progress
from gemel_ray.policy.search import begin
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.errors import InputError, MissingReleaseError, StoreError
from gemel_ray.spec.layers import LayerGroup, LayerRef
from gemel_ray.spec.release import BlobInfo
from gemel_ray.spec.trials import Outcome
from gemel_ray.weights.files import Files
from gemel_ray.weights.garbage import collect_garbage
from gemel_ray.weights.maintenance import revert_head, revert_queries
from gemel_ray.weights.store import Store, open_store

HERE = Path(__file__).parent


@pytest.fixture
def family(store):
    return publish_family(store)


def test_only_what_no_release_names_and_is_old_enough_goes(family):
    tried = family.put_blob(b"tried, not accepted")
    left = blob_file(family, tried).with_name(".writing-x")
    left.write_bytes(b"half")
    assert collect_garbage(family).freed_bytes == 0
    grow_old(family)
    young = family.put_blob(b"put by a search that is running")
    garbage = collect_garbage(family)
    assert [Path(entry.name).name for entry in garbage.blobs] == [f"{tried}.safetensors"]
    assert (len(garbage.leftovers), garbage.freed_bytes) == (1, len(b"tried, not accepted") + len(b"half"))
    assert len(garbage.young) == 1
    assert family.has_blob(young)
    assert not family.has_blob(tried)
    assert family.verify() == []


def test_a_dry_run_tells_the_same_and_changes_nothing(family):
    family.put_blob(b"tried")
    grow_old(family)
    before = files_below(family.locate())
    told = collect_garbage(family, keep=1, dry_run=True)
    assert files_below(family.locate()) == before
    assert collect_garbage(family, keep=1) == told
    assert told.releases == (2,)


def test_an_old_blob_that_is_put_again_counts_as_young(family):
    family.put_blob(b"tried long ago, and again now")
    grow_old(family)
    again = family.put_blob(b"tried long ago, and again now")
    assert collect_garbage(family).blobs == ()
    assert family.has_blob(again)


def test_head_the_newest_and_their_originals_stay(family):
    release(family, {"cars": {"": b"another workload"}})
    family.set_head(2)
    grow_old(family)
    assert collect_garbage(family, keep=1).releases == (3,)
    assert family.releases() == [1, 2, 4]
    assert family.head() == 2
    assert family.verify() == []


def test_originals_are_still_found_when_all_between_is_gone(family):
    release(family, PAIR, shared("c1", "cars", "people"), shared("c2", "cars", "people"), parent=3, agreement=0.95)
    grow_old(family)
    assert collect_garbage(family, keep=1).releases == (2, 3)
    assert collect_garbage(family, keep=1).releases == ()
    with pytest.raises(
        MissingReleaseError, match=r"release 3, the parent of HEAD \(4\), was removed; say --to .*\[1, 4\]"
    ):
        revert_head(family)
    made = revert_queries(family, ["cars"])
    assert made.queries["cars"].weights == family.manifest(1).queries["cars"].weights


def test_numbers_of_removed_releases_are_never_given_again(family):
    collect_garbage(family, keep=1)
    assert publish(family)[0].release == 4


def test_what_an_unfinished_search_has_yet_to_publish_stays(family):
    groups = [LayerGroup("Conv c3", (LayerRef("cars", "c3"), LayerRef("people", "c3")), 50)]
    groups += [LayerGroup("Conv c4", (LayerRef("cars", "c4"), LayerRef("people", "c4")), 4)]
    state = begin(groups, relatives=groups[:1], release=2, settings=SearchSettings(max_trials=12, max_steps=5))
    progress = Progress(family, "search", [state], root=1)
    first, second = iter(progress.next_candidate, None)
    assert first.configuration.saved_bytes >= second.configuration.saved_bytes
    sha = family.put_blob(b"second's")
    outcome = Outcome(
        candidate=second.number, passed=True, reason="passed", accuracies={"cars": accuracy(0.95)},
        weights={"cars": {"": sha}}, blobs={sha: BlobInfo(tensor_bytes=8, file_bytes=8)},
    )  # fmt: skip
    progress.take(second, outcome)
    family.set_head(3)
    grow_old(family)
    collect_garbage(family, keep=1)
    # Release 2 is what its next candidates start from.
    assert family.releases() == [1, 2, 3]
    progress.take(first, Outcome(candidate=first.number, passed=False, reason="missed on validation"))
    assert family.manifest().queries["cars"].weights == {"": sha}
    assert family.verify() == []


@pytest.mark.parametrize("name", ["releases/000002.json", "searches/s.json", "lineage.json", "HEAD"])
def test_nothing_is_removed_where_something_cannot_be_read(family, name):
    family.write_state("s", {"root": 1, "states": []})
    family.put_blob(b"tried")
    grow_old(family)
    Path(family.locate(name)).write_text("{")
    before = files_below(family.locate())
    with pytest.raises(StoreError, match="nothing was removed, since"):
        collect_garbage(family, keep=1)
    assert files_below(family.locate()) == before


def test_to_keep_no_release_is_refused(family):
    with pytest.raises(InputError, match="keep at least 1 release"):
        collect_garbage(family, keep=0)


def test_garbage_is_removed_on_another_file_system_too(tmp_path):
    store = Store(Files(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/store"))
    publish_family(store)
    again = store.put_blob(b"tried")
    local = open_store(tmp_path / "bucket" / "store")
    grow_old(local)
    store.put_blob(b"tried")
    garbage = collect_garbage(store, keep=1)
    # The blobs that release 2 alone named; the one that was put again is written anew, so it is young.
    assert (garbage.releases, len(garbage.blobs)) == ((2,), 3)
    assert local.has_blob(again)
    assert local.verify() == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=7), st.integers(1, 4), st.data())
def test_whatever_is_removed_the_store_is_whole_and_what_stays_is_unchanged(tmp_path_factory, made, keep, data):
    store = open_store(tmp_path_factory.mktemp("s"), create=True)
    for number, (parent, content) in enumerate(made, 1):
        release(store, {"cars": {"": f"weights {content}".encode()}}, parent=parent if 0 < parent < number else None)
    unused = store.put_blob(b"unused")
    head = data.draw(st.sampled_from(store.releases()))
    store.set_head(head)
    former = {number: store.manifest(number) for number in store.releases()}
    roots = {number: store.lineage(number)[-1] for number in former}
    collect_garbage(store, keep=keep, grace_hours=0)
    left = store.releases()
    assert {head, roots[head], *list(former)[-keep:]} <= set(left)
    assert all(
        store.manifest(number) == former[number] and store.lineage(number)[-1] == roots[number] for number in left
    )
    assert store.verify() == []
    assert store.unused_blobs() == []
    assert not store.has_blob(unused)


COLLECTOR = """
import os, signal, sys
from gemel_ray.weights.files import Files
from gemel_ray.weights.garbage import collect_garbage
from gemel_ray.weights.store import open_store
left = int(sys.argv[2])
def dying(really):
    def step(*given):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return really(*given)
    return step
really_delete = Files.delete
os.fsync = dying(os.fsync)
delete_one = dying(lambda name: name)
Files.delete = lambda files, names: really_delete(files, (delete_one(name) for name in names))
collect_garbage(open_store(sys.argv[1]), keep=1)
print(left)
"""


def collect_and_die(store, steps):
    command = [sys.executable, "-c", COLLECTOR, store.locate(), str(steps)]
    return subprocess.run(command, capture_output=True, text=True)


# Two syncs write down the lineage; then each manifest goes and their folder is synced, then each blob and theirs.
STEPS = 2 + (3 + 1) + (5 + 5)


@pytest.fixture
def grown(family):
    """The family, a reverted fifth release, and a blob that was tried; releases 2 to 4 and five blobs may go."""
    release(family, THREE, shared("c1", "boxes", "cars", "people"), shared("c2", "cars", "people"), parent=3)
    revert_queries(family, ["boxes"])
    family.put_blob(b"tried")
    grow_old(family)
    return family


def test_a_collector_takes_so_many_steps(grown):
    assert collect_and_die(grown, 99).stdout == f"{99 - STEPS}\n"


@pytest.mark.parametrize("steps", range(STEPS))
def test_a_collector_killed_at_any_step_leaves_a_whole_store_and_the_next_one_ends_its_work(grown, steps):
    family = grown
    done = collect_and_die(family, steps)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert family.head() == 5
    assert family.lineage(5) == [5, 4, 3, 2, 1]
    assert all("safe to delete" in problem.what for problem in family.verify())
    grow_old(family)
    collect_garbage(family, keep=1)
    assert family.releases() == [1, 5]
    assert (family.unused_blobs(), family.verify()) == ([], [])
    assert family.manifest().queries["boxes"].weights == family.manifest(1).queries["boxes"].weights


def test_releases_published_while_garbage_is_removed_are_whole(store):
    publish(store)
    command = [sys.executable, str(HERE / "publisher.py"), store.locate(), "30", "meanwhile"]
    removed = 0
    with subprocess.Popen(command) as publisher:
        while publisher.poll() is None:
            removed += len(collect_garbage(store, keep=1).releases)
    assert publisher.returncode == 0
    assert removed > 0
    assert store.verify() == []
    assert store.read_blob(next(iter(store.manifest().blobs))) == b"meanwhile 29"


HASTY_PUBLISHER = """
import sys
sys.path.insert(0, sys.argv[2])
from weights_kit import publish
from gemel_ray.spec.errors import MissingBlobError
from gemel_ray.weights.store import open_store
published = 0
while published < 60:
    try:
        publish(open_store(sys.argv[1]), f"hasty {published}".encode())
        published += 1
    except MissingBlobError:
        pass
"""


def test_without_any_grace_a_publisher_is_refused_and_never_left_with_a_broken_release(store):
    publish(store)
    removed = 0
    with subprocess.Popen([sys.executable, "-c", HASTY_PUBLISHER, store.locate(), str(HERE)]) as publisher:
        while publisher.poll() is None:
            removed += len(collect_garbage(store, keep=1, grace_hours=0).blobs)
            assert store.has_blob(next(iter(store.manifest().blobs)))
    assert publisher.returncode == 0
    assert removed > 0
    assert store.verify() == []

"""What has drifted is reverted in every release that serves it, and as soon as it can be where it could not."""

import shutil
from pathlib import Path

import pytest
from drift_boxes import Cluster, Frames, boxes_on, feed, status_of
from drift_kit import BAD, GOOD, a_workload, publish_drifting

from gemel_ray.serving import drift_attempts
from gemel_ray.serving.drift_attempts import DriftAttempts
from gemel_ray.serving.drift_options import DriftOptions, RemergeOptions
from gemel_ray.serving.drift_reports import Drift, DriftReply
from gemel_ray.serving.drift_response import DriftResponse
from gemel_ray.spec.errors import InputError, StoreError
from gemel_ray.spec.release import BlobInfo
from gemel_ray.weights.maintenance import pin, revert_queries, unpin
from gemel_ray.weights.store import open_store

REPLY = DriftReply(verdict="drifted", agreement=0.5, floor=0.9, samples=100, evidence_fraction=1)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(drift_attempts, "_FIRST_S", 0.05)
    monkeypatch.setattr(drift_attempts, "_MOST_S", 0.05)


@pytest.fixture
def store(tmp_path):
    publish_drifting(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def box_of(store, tmp_path):
    with boxes_on(store, tmp_path) as make:
        yield make


def events_of(box):
    return box._drift.report().events


def serves_original(box):
    return BAD not in box._drift.watch.report()


def test_a_release_that_brings_back_what_drifted_is_reverted_too(store, box_of):
    box = box_of()
    feed(box, lambda: box._drift.watch.report()[BAD].samples > 0)
    shutil.move(store, f"{store}-away")
    feed(box, lambda: events_of(box))
    shutil.move(f"{store}-away", store)
    revert_queries(open_store(store), [GOOD])
    assert box.check()
    feed(box, lambda: len(events_of(box)) == 2 and serves_original(box))
    assert [(event.release, event.reverted_in) for event in events_of(box)] == [(2, 1_000_000_002), (3, 4)]
    assert open_store(store).head() == 4
    box.stop()
    assert events_of(box_of()) == events_of(box)


def test_what_drifted_while_a_release_was_pinned_is_reverted_once_it_is_let_go(store, box_of):
    pin(open_store(store), 2)
    box = box_of()
    box.check()
    feed(box, lambda: events_of(box))
    (event,) = events_of(box)
    assert (event.reverted_in, event.outcome) == (
        None, "not reverted: release 2 is pinned and stays; `gemel unpin` lets it go; it is tried again",
    )  # fmt: skip
    unpin(open_store(store))
    box.check()
    feed(box, lambda: serves_original(box), [GOOD])
    (after,) = events_of(box)
    assert (after.at, after.samples, after.reverted_in) == (event.at, event.samples, 3)
    assert open_store(store).head() == 3


def test_what_drifted_before_a_restart_is_reverted_after_it(store, box_of, client_of):
    pin(open_store(store), 2)
    box = box_of()
    box.check()
    feed(box, lambda: events_of(box))
    box.stop()
    unpin(open_store(store))
    again = box_of()
    feed(again, lambda: serves_original(again), [GOOD])
    (event,) = status_of(client_of(again))["drift_events"]
    assert (event["release"], event["reverted_in"]) == (2, 3)


def test_where_head_has_other_weights_by_now_nothing_is_published_and_that_is_said(store, box_of):
    box = box_of()
    open_store(store).set_head(1)
    number, told = box.revert(BAD, 2)
    assert (number, box._manifest.release) == (None, 1)
    assert told == (
        "nothing was published: the store's HEAD has other weights of it already, and is served (release 1)"
    )
    assert open_store(store).releases() == [1, 2]


def test_where_head_cannot_be_served_the_box_reverts_by_itself(store, box_of):
    box = box_of()
    opened = open_store(store)
    root, sha = opened.manifest(1), opened.put_blob(b"whole")
    other = root.queries[GOOD].model_copy(update={"weights": dict.fromkeys(root.queries[GOOD].weights, sha)})
    blobs = root.blobs | {sha: BlobInfo(tensor_bytes=5, file_bytes=5)}
    opened.publish(root.model_copy(update={"queries": {**root.queries, GOOD: other}, "blobs": blobs, "parent": 1}))
    Path(opened.locate_blob(sha)).write_bytes(b"damaged")
    found, told = box.revert(BAD, 2)
    assert (found, box._manifest.release) == (1_000_000_002, 1_000_000_002)
    assert "this box alone" in told


def test_what_runs_by_now_is_not_what_drifted(store, box_of):
    box = box_of()
    with pytest.raises(InputError, match="release 2 is served by now"):
        box.revert(BAD, 1)
    assert box._manifest.release == open_store(store).head() == 2


def test_each_release_is_acted_on_at_once_and_again_only_after_what_failed():
    now_s = [0.0]
    attempts = DriftAttempts(lambda: now_s[0])
    assert attempts.is_due("a", 1)
    attempts.note("a", 1, is_done=False)
    assert not attempts.is_due("a", 1)
    assert attempts.is_due("a", 2)
    assert attempts.is_due("b", 1)
    now_s[0] = 1.0
    assert attempts.is_due("a", 1)
    attempts.note("a", 1, is_done=True)
    now_s[0] = 1e9
    assert not attempts.is_due("a", 1)


def test_attempts_become_seldom(monkeypatch):
    monkeypatch.undo()
    now_s = [0.0]
    attempts, at_s = DriftAttempts(lambda: now_s[0]), []
    for now_s[0] in range(3600):
        if attempts.is_due("a", 1):
            attempts.note("a", 1, is_done=False)
            at_s.append(now_s[0])
    assert at_s == [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030]


def response_of(folder, revert, cluster, kept):
    options = DriftOptions(remerge=RemergeOptions(address="http://head:8265", frames=200))
    return DriftResponse(
        options, a_workload(folder), "s3://bucket/store", folder, revert=revert, kept=lambda query: kept, submit=cluster
    )  # fmt: skip


def test_what_could_not_be_reverted_is_told_once_and_corrected(tmp_path):
    failures = [StoreError("away"), RuntimeError("device lost")]

    def revert(query, release):
        if failures:
            raise failures.pop(0)
        return 8, "done"

    kept = Frames()
    kept.folder = tmp_path / BAD
    response, drift = response_of(tmp_path, revert, Cluster(), kept), Drift(BAD, REPLY, 7, "model")
    told = []
    for is_done in (False, False, True):
        assert response(drift, 7) is is_done
        (event,) = response.events
        told.append(event.outcome)
    assert told == [
        "not reverted: away; it is tried again",
        "not reverted: an error of the watch itself (RuntimeError); its log says more; it is tried again",
        "done",
    ]
    assert response_of(tmp_path, revert, Cluster(), kept).events == response.events


def test_weights_that_drift_in_several_releases_are_merged_anew_once(tmp_path):
    cluster, kept = Cluster(), Frames(range(200))
    kept.folder = tmp_path / BAD
    response = response_of(tmp_path, lambda query, release: (release + 1, "done"), cluster, kept)
    response(Drift(BAD, REPLY, 7, "model"), 7)
    response(Drift(BAD, REPLY, 9, "model"), 9)
    cluster.is_away = False
    response.submit_what_is_ready()
    response(Drift(BAD, REPLY, 11, "model"), 11)
    response.submit_what_is_ready()
    assert [arguments[5] for _, _, arguments in cluster.jobs] == ["9"], "from the last release that has them"
    response(Drift(BAD, REPLY, 13, "other model"), 13)
    response.submit_what_is_ready()
    assert [event.job for event in response.events] == [None, "job-1", "job-1", "job-2"]

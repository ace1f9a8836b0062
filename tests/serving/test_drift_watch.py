"""The drift watch on a real engine: what drifts is found, reverted and told; what holds is left alone."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from drift_boxes import DRIFT, Cluster, Frames, boxes_on, drift_of, feed, status_of
from drift_kit import BAD, GOOD, a_workload, publish_drifting
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.drift import DriftState, observe
from gemel_ray.serving.drift_memory import DriftMemory
from gemel_ray.serving.drift_options import DriftOptions, RemergeOptions
from gemel_ray.serving.drift_reports import Drift, DriftEvent, DriftReply
from gemel_ray.serving.drift_response import DriftResponse, with_feed
from gemel_ray.serving.drift_watch import compared
from gemel_ray.spec.answers import Box, Classified, Detected
from gemel_ray.spec.errors import OverBudgetError
from gemel_ray.spec.feeds import ImageFolderFeed
from gemel_ray.spec.workload import load_workload
from gemel_ray.vision.feeds.opening import open_feed
from gemel_ray.vision.metrics import compare
from gemel_ray.weights.store import open_store

# Drift is found so late that a restart comes before.
WATCHED = DRIFT.model_copy(update={"false_alarm_days": 30_000})
WATCH_AND_WAIT = """
import sys, json, time
from pathlib import Path
from drift_boxes import *
from test_drift_watch import *
store, folder = Path(sys.argv[1]), Path(sys.argv[2])
options = EdgeOptions(cache=str(folder / "disk"), poll_every_s=NEVER_S, threads=1, drift=WATCHED)
box = EdgeBox(str(store), NodeOptions(memory=1 << 26, device="cpu"), options, workload=a_workload(folder))
box.start()
feed(box, lambda: box._drift.watch.report()[GOOD].samples > 80, [GOOD])
print(box._drift.watch.report()[GOOD].model_dump_json(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def store(tmp_path):
    publish_drifting(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def box_of(store, tmp_path):
    with boxes_on(store, tmp_path) as make:
        yield make


def test_a_query_that_drifted_runs_its_original_again_and_the_other_one_stays(store, box_of, client_of, tmp_path):
    box = box_of()
    client = client_of(box)
    feed(box, lambda: status_of(client)["drift_events"])
    (event,) = status_of(client)["drift_events"]
    assert (event["query"], event["release"], event["reverted_in"]) == (BAD, 2, 3)
    assert event["agreement"] < event["floor"]
    assert "all that follow the store" in event["outcome"]
    head, root, merged = open_store(store).manifest(), open_store(store).manifest(1), open_store(store).manifest(2)
    assert head.release == 3
    assert head.queries[BAD].weights == root.queries[BAD].weights
    assert head.queries[GOOD].weights == merged.queries[GOOD].weights
    assert drift_of(client, BAD) is None, "what runs its original has nothing to drift from"
    before = drift_of(client, GOOD)["samples"]
    feed(box, lambda: drift_of(client, GOOD)["samples"] > before + 30)
    assert (drift_of(client, GOOD)["verdict"], drift_of(client, GOOD)["agreement"]) == ("holding", 1.0)
    assert len(status_of(client)["drift_events"]) == 1


def test_the_re_merge_is_made_ready_with_the_frames_and_the_originals_answers(store, box_of, client_of):
    box = box_of()
    client = client_of(box)
    feed(box, lambda: status_of(client)["drift_events"])
    (event,) = status_of(client)["drift_events"]
    search = f"gemel search {event['folder']}/workload.yaml --store {store}"
    assert event["command"] == f"{search} --from-release 2 --apart {BAD}"
    workload = load_workload(f"{event['folder']}/workload.yaml")
    assert {query.name: query.feed for query in workload.queries} == {BAD: f"{BAD}_drift", GOOD: "f"}
    frames = list(open_feed("kept", workload.feeds[f"{BAD}_drift"]).frames())
    assert len(frames) >= 8
    originals = box._follower.originals(open_store(store).manifest(1))
    assert {frame.label for frame in frames} <= set(originals.queries[BAD].query.model.classes)
    held = box._drift.watch.kept(BAD)
    feed(box, lambda: len(held) > len(frames) + 10)


def test_a_store_that_cannot_be_written_is_reverted_on_this_box_alone_and_stays_so(store, box_of, client_of):
    box = box_of()
    feed(box, lambda: box._drift.watch.report()[BAD].samples > 0)
    shutil.move(store, f"{store}-away")
    client = client_of(box)
    feed(box, lambda: status_of(client)["drift_events"])
    (event,) = status_of(client)["drift_events"]
    assert event["reverted_in"] == 1_000_000_002
    assert "this box alone" in event["outcome"]
    assert status_of(client)["release"] == 1_000_000_002
    box.stop()
    again = box_of()
    assert status_of(client_of(again))["release"] == 1_000_000_002
    shutil.move(f"{store}-away", store)
    assert not again.check(), "the store still names the release that drifted here"
    open_store(store).set_head(1)
    assert again.check()


def test_an_original_that_does_not_fit_is_not_reverted_to(store, box_of, client_of, monkeypatch):
    box = box_of()
    monkeypatch.setattr(box._engine, "budget_bytes", 1000)
    with pytest.raises(OverBudgetError, match="raise the budget"):
        box.revert(BAD, 2)
    client = client_of(box)
    feed(box, lambda: status_of(client)["drift_events"])
    (event,) = status_of(client)["drift_events"]
    assert event["reverted_in"] is None
    assert "not reverted: query" in event["outcome"]
    assert open_store(store).head() == 2


def test_revert_may_be_left_to_people(store, box_of, client_of):
    box = box_of(DRIFT.model_copy(update={"revert": False}))
    client = client_of(box)
    feed(box, lambda: status_of(client)["drift_events"])
    assert open_store(store).head() == 2
    assert drift_of(client, BAD)["verdict"] == "drifted"
    told = client.get("/metrics").text
    assert f'gemel_query_drifted{{node="local",query="{BAD}"}} 1.0' in told
    assert f'gemel_query_drifted{{node="local",query="{GOOD}"}} 0.0' in told
    for name in ("gemel_query_sampled_agreement_ratio", "gemel_query_drift_floor_ratio", "gemel_frames_sampled_total"):
        assert f"{name}{{" in told


def test_events_are_remembered_after_a_restart(store, box_of, client_of):
    box = box_of()
    client = client_of(box)
    feed(box, lambda: status_of(client)["drift_events"])
    (event,) = status_of(client)["drift_events"]
    box.stop()
    assert status_of(client_of(box_of()))["drift_events"] == [event]


def test_a_watch_that_is_killed_goes_on_where_it_was(store, box_of, client_of, tmp_path):
    """In a process of its own, which is killed with SIGKILL between two frames."""
    command = [sys.executable, "-c", WATCH_AND_WAIT, str(store), str(tmp_path)]
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here) as watching:
        told = json.loads(watching.stdout.readline())
        watching.kill()
    assert told["verdict"] == "holding"
    found = drift_of(client_of(box_of(WATCHED)), GOOD)
    whole = told["samples"] - found["samples"]
    assert 0 <= whole < 64, "all blocks but the one under way"
    assert found["samples"] >= 8
    assert found["agreement"] == pytest.approx(told["agreement"])
    assert box_of(DRIFT)._drift.watch.report()[GOOD].samples == 0, "evidence for another test is none for this one"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 1}', '{"south_cars": {"weights": {}, "settings": {}, "state": {}}}']
)
def test_evidence_that_cannot_be_read_begins_anew(store, box_of, client_of, tmp_path, text):
    released = open_store(store).manifest(2).queries[GOOD]
    (tmp_path / "drift-evidence.json").write_text(text)
    settings = DRIFT.settings(0.9)
    memory = DriftMemory(tmp_path)
    assert memory.recall(released, settings) == DriftState()
    known = observe(DriftState(), compared(Classified("car", ()), Classified("car", ())), settings)
    memory.keep(released, settings, known)
    assert DriftMemory(tmp_path).recall(released, settings) == known
    other = released.model_copy(update={"weights": {"": "0" * 64}})
    assert DriftMemory(tmp_path).recall(other, settings) == DriftState()


def test_nobody_watches_unless_asked_to(store, box_of, client_of):
    box = box_of(drift=None)
    feed(box, lambda: True)
    assert box._engine.sampler is None
    assert drift_of(client_of(box), BAD) is None


def test_a_re_merge_is_submitted_once_there_are_frames_enough_and_somebody_who_takes_it(tmp_path):
    cluster, kept = Cluster(), Frames(range(199))
    kept.folder = tmp_path / BAD
    options = DriftOptions(remerge=RemergeOptions(address="http://head:8265", frames=200, arguments=("--trials", "9")))
    response = DriftResponse(
        options, a_workload(tmp_path), "s3://bucket/store", tmp_path,
        revert=lambda query, release: (3, "done"), kept=lambda query: kept, submit=cluster,
    )  # fmt: skip
    reply = DriftReply(verdict="drifted", agreement=0.5, floor=0.9, samples=100, evidence_fraction=1)
    assert response(Drift(BAD, reply, 9, "model"), 2)
    cluster.is_away = False
    response.submit_what_is_ready()
    assert cluster.jobs == [], "too few frames"
    kept.append(0)
    cluster.is_away = True
    response.submit_what_is_ready()
    assert response.events[0].job is None
    cluster.is_away = False
    for _ in range(3):
        response.submit_what_is_ready()
    wanted = ["search", "workload.yaml", "--store", "s3://bucket/store"]
    wanted += ["--from-release", "2", "--apart", BAD, "--trials", "9"]
    assert cluster.jobs == [("http://head:8265", tmp_path / BAD, wanted)]
    assert response.events[0].job == "job-1"
    written = json.loads((tmp_path / "drift-events.json").read_text())
    assert [DriftEvent.model_validate(event) for event in written] == list(response.events)


def test_a_workload_with_another_feed_can_be_read_again(tmp_path):
    workload = a_workload(tmp_path)
    document = with_feed(workload, BAD, ImageFolderFeed(kind="image_folder", path="frames", fps=0.1))
    (tmp_path / "w.yaml").write_text(json.dumps(document))
    again = load_workload(tmp_path / "w.yaml")
    assert again.query(GOOD) == workload.query(GOOD)
    assert again.feeds[again.query(BAD).feed].path == str(tmp_path / "frames")


LABELS = st.sampled_from(["background", "car", "person"])


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=30))
def test_labels_are_compared_as_the_releases_own_measure_does(pairs):
    reference, given_ = ([Classified(label, ()) for label in side] for side in zip(*pairs, strict=True))
    assert _agreement(reference, given_) == pytest.approx(compare(reference, given_).estimate)


BOXES = st.lists(
    st.builds(
        Box, st.sampled_from(["car", "person"]), st.just(0.9), st.integers(0, 8), st.just(0), st.just(9), st.just(9)
    ),
    max_size=4,
)


@given(st.lists(st.tuples(BOXES, BOXES), min_size=1, max_size=8))
def test_boxes_are_compared_as_the_releases_own_measure_does(pairs):
    reference, given_ = ([Detected(tuple(boxes)) for boxes in side] for side in zip(*pairs, strict=True))
    assert _agreement(reference, given_) == pytest.approx(compare(reference, given_).estimate)


def _agreement(reference, given_):
    from gemel_ray.policy.drift import Block

    block = Block()
    for one, other in zip(reference, given_, strict=True):
        block = block.joined(compared(one, other))
    return block.score

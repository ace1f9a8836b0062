"""The merge search on a real Ray: real trial processes, a real store, a driver killed with SIGKILL."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from commands import run_gemel
from searching import NODE, SEARCH, document_of, finished, first_trial, gemel, raylet_of
from tiny_workload import TINY_WORKLOAD

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_originals_are_trained_once(folder):
    rows = document_of(folder, "originals", "workload.yaml", "--steps", "40")
    assert [row["cached"] for row in rows] == [True, True]


def test_a_killed_search_is_taken_up_again_and_ends_with_a_whole_release(folder):
    search = (*SEARCH, "store")
    killed = gemel(folder, *search)
    searches = folder / "store" / "searches"
    until_s = time.monotonic() + 120
    while not (searches.is_dir() and any(searches.glob("*.json"))):
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < until_s
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = document_of(folder, "releases", "store")
    manifest = json.loads(finished(gemel(folder, *search, "--resume")))
    assert manifest["bytes_after"] <= min(row["bytes_after"] for row in before)
    assert manifest["bytes_after"] < manifest["bytes_before"]
    assert all(query["accuracy"]["agreement"] >= 0.7 for query in manifest["queries"].values())
    assert document_of(folder, "verify", "store") == []


def test_a_search_goes_on_from_what_a_release_has_merged(folder, cluster):
    """As after drift: one query shares nothing any more and sees another camera; its originals come from the store."""
    shutil.copytree(folder / "store", folder / "again")
    before = document_of(folder, "releases", "again")
    head = next(row["release"] for row in before if row["is_head"])
    (folder / "drifted.yaml").write_text(TINY_WORKLOAD.replace("originals/", "gone/").replace("seed: 0", "seed: 5"))
    more = ("again", "--from-release", str(head), "--apart")
    search = ("search", "drifted.yaml", *SEARCH[2:], *more, "a_cars")
    manifest = json.loads(finished(gemel(folder, *search, address=cluster.address)))
    after = document_of(folder, "releases", "again")
    new = {row["release"]: row["parent"] for row in after if row["release"] > max(row["release"] for row in before)}
    apart, *improved = sorted(new)
    assert new[apart] == head
    assert [new[number] for number in improved] == [apart, *improved[:-1]]
    assert manifest["release"] == improved[-1] == next(row["release"] for row in after if row["is_head"])
    assert manifest["bytes_after"] < next(row["bytes_after"] for row in after if row["release"] == apart)
    refused = run_gemel(folder, *search[:-1], "b_car")
    assert "did you mean 'b_cars'" in refused.stderr
    assert refused.returncode == 2


def test_one_worker_without_a_break_comes_to_the_same_release_and_keeps_its_logs(folder):
    alone = json.loads(finished(gemel(folder, *SEARCH, "alone", "--parallel", "1", "--logs", "logs")))
    together = document_of(folder, "show", "store")
    assert alone["merge_configuration"] == together["merge_configuration"]
    assert [query["weights"] for query in alone["queries"].values()] == [
        query["weights"] for query in together["queries"].values()
    ]
    lines = [line for path in (folder / "logs").rglob("result.json") for line in path.read_text().splitlines()]
    assert {"steps", "worst_agreement"} <= json.loads(lines[0]).keys()
    assert list((folder / "logs").rglob("events.out.tfevents*"))
    (state,) = (folder / "alone" / "searches").glob("*.json")
    prediction = json.loads(state.read_text())["prediction"]
    assert 0 < prediction["accepted_bytes"] <= prediction["possible_bytes"]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_trials_of_a_node_that_dies_are_tried_again_on_another_and_the_release_is_the_same(folder, cluster):
    lost = next(iter(cluster.worker_nodes))
    searching = gemel(folder, *SEARCH, "moved", address=cluster.address)
    first_trial(searching, [raylet_of(lost)])
    cluster.remove_node(lost, allow_graceful=False)
    moved = json.loads(finished(searching))
    cluster.add_node(**NODE)
    undisturbed = document_of(folder, "show", "store")
    assert [query["weights"] for query in moved["queries"].values()] == [
        query["weights"] for query in undisturbed["queries"].values()
    ]


def test_every_operating_point_is_a_release_and_the_strictest_is_served(folder, cluster):
    search = ("search", "workload.yaml", "--store", "points", "--steps", "20", "--trials", "2", "--gate-margin", "1")
    rows = json.loads(
        finished(gemel(folder, *search, "--operating-points", "0.7,0.5", "--json", address=cluster.address))
    )
    assert [row["target"] for row in rows] == [0.5, 0.7]
    assert all(row["worst_agreement"] >= row["target"] for row in rows)
    (head,) = [row for row in document_of(folder, "releases", "points") if row["is_head"]]
    assert head["release"] == rows[-1]["release"]
    again = json.loads(
        finished(gemel(folder, *search, "--operating-points", "0.5,0.7", "--resume", "--json", address=cluster.address))
    )
    assert again == rows
    refused = run_gemel(folder, *search, "--operating-points", "95")
    assert "targets lie above 0 and at most at 1" in refused.stderr
    assert refused.returncode == 2

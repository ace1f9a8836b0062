"""The merge search on a real Ray: real trial processes, a real store, a driver killed with SIGKILL."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run_gemel
from ray.cluster_utils import Cluster
from tiny_workload import TINY_WORKLOAD

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SEARCH = (
    "search", "workload.yaml", "--steps", "20", "--trials", "6", "--gate-margin", "1", "--json", "--store"
)  # fmt: skip

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes beside the head that are there already, as on a real cluster; else a search starts a Ray of its own."""
    found = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    for _ in range(2):
        found.add_node(**NODE)
    yield found
    found.shutdown()


def gemel(folder, *arguments, address=None):
    command = [sys.executable, "-c", "from gemel_ray.cli.main import main; main()", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=environment | ({"RAY_ADDRESS": address} if address else {}),
    )  # fmt: skip


def finished(process):
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out


def document_of(folder, *arguments):
    """What a command that needs no Ray says of a store or a workload."""
    done = run_gemel(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    (folder / "workload.yaml").write_text(TINY_WORKLOAD)
    rows = document_of(folder, "originals", "workload.yaml", "--steps", "40")
    assert [row["cached"] for row in rows] == [False, False]
    return folder


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


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


def trial_processes(above):
    """Pids of trials at work below some processes, as Ray names them: not those of other tests on this machine."""
    found, parents = [], {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name, status = path.read_bytes(), (path.parent / "stat").read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(status.rpartition(")")[2].split()[1])
        if name.startswith((b"ray::MergeTrial", b"ray::ResourceTrainable")):
            found.append(int(path.parent.name))
    return [pid for pid in found if set(above) & set(_ancestors(pid, parents))]


def _ancestors(pid, parents):
    while pid := parents.get(pid, 0):
        yield pid


def first_trial(searching, above):
    """The first trial process of a search that appears below any of some processes."""
    until_s, before = time.monotonic() + 120, trial_processes(above)
    while not (found := [pid for pid in trial_processes(above) if pid not in before]):
        assert searching.poll() is None, searching.communicate()[1]
        assert time.monotonic() < until_s
        time.sleep(0.05)
    return found[0]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_trial_whose_process_is_killed_is_tried_again(folder, cluster):
    search = ("search", "workload.yaml", "--store", "killed", "--steps", "60", "--trials", "2", "--json")
    searching = gemel(folder, *search, "--gate-margin", "1", address=cluster.address)
    pid = first_trial(searching, [raylet_of(node) for node in cluster.worker_nodes])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    manifest = json.loads(finished(searching))
    assert manifest["bytes_after"] < manifest["bytes_before"]
    assert document_of(folder, "verify", "killed") == []


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


def test_a_search_that_is_interrupted_says_how_to_go_on(folder, cluster):
    search = ("search", "workload.yaml", "--store", "interrupted", "--steps", "200", "--trials", "4", "--json")
    searching = gemel(folder, *search)
    for line in searching.stderr:
        if "begins: leap" in line or "begins: kin" in line:
            break
    searching.send_signal(signal.SIGINT)
    out, errors = searching.communicate(timeout=240)
    assert searching.returncode == 1, errors
    assert out == ""
    assert "interrupted; release" in errors
    assert "--resume" in errors
    resumed = gemel(folder, *search, "--minutes", "0", "--resume", address=cluster.address)
    out, errors = resumed.communicate(timeout=240)
    assert "time is up" in errors
    assert json.loads(out)["release"] >= 1


def test_trials_that_no_node_has_room_for_are_waited_for_until_time_is_up(folder, cluster):
    """Another node may come to a cluster; a machine of its own will never have more."""
    asked = (*SEARCH, "roomless", "--gpus", "64", "--minutes")
    waiting = gemel(folder, *asked, "0.1", address=cluster.address)
    out, told = waiting.communicate(timeout=240)
    assert waiting.returncode == 0, told
    assert "--cpus 1 --gpus 64: no node has that" in told
    assert "time is up, release 1 stands; the same with --resume goes on from it" in told
    assert "failed" not in told
    assert json.loads(out)["release"] == 1
    refused = run_gemel(folder, *asked, "10", "--resume")
    assert "--cpus 1 --gpus 64: this machine has" in refused.stderr
    assert refused.returncode == 2


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


def test_a_store_that_is_damaged_ends_the_search_and_a_mended_one_lets_it_go_on(folder, cluster):
    finished(gemel(folder, *SEARCH, "spoiled", "--minutes", "0", address=cluster.address))
    blob = max((folder / "spoiled" / "blobs").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    whole = blob.read_bytes()
    blob.write_bytes(whole[: len(whole) // 2])
    failed = gemel(folder, *SEARCH, "spoiled", "--resume", address=cluster.address)
    _, errors = failed.communicate(timeout=240)
    assert failed.returncode == 1
    assert blob.stem in errors
    assert "Release 1 stands; mend that, and the same with --resume goes on" in " ".join(errors.split())
    blob.write_bytes(whole)
    manifest = json.loads(finished(gemel(folder, *SEARCH, "spoiled", "--resume", address=cluster.address)))
    assert manifest["bytes_after"] < manifest["bytes_before"]


def test_nothing_to_resume_is_said(folder):
    refused = run_gemel(folder, "search", "workload.yaml", "--store", "other", "--resume")
    assert refused.returncode == 1
    assert "no search of 'tiny' to resume" in refused.stderr

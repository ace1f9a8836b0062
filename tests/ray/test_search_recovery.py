"""A merge search on a real Ray that loses a trial process, is interrupted, finds no room or finds its store damaged."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from commands import run_gemel
from searching import SEARCH, document_of, finished, first_trial, gemel, raylet_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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


def test_a_store_that_is_damaged_ends_the_search_and_a_mended_one_lets_it_go_on(folder, cluster):
    failed = gemel(folder, *SEARCH, "spoiled", address=cluster.address)
    # Its process has yet to start, and will find what it starts from damaged.
    assert any("trial 0 begins" in line for line in failed.stderr)
    blob = max((folder / "spoiled" / "blobs").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    whole = blob.read_bytes()
    blob.write_bytes(whole[: len(whole) // 2])
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

"""Parts of a fleet of real raylets are killed under load. A cluster of its own, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_release import publish_tiny_release, publish_variant

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOBS = Path(__file__).parents[2] / "jobs"


def record_of(job, store, *more, **settings):
    """What a benchmark found, without Ray's settings of this process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | settings
    path = store.parent / "record.json"
    command = [sys.executable, str(JOBS / job), str(store), *more, "--out", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())["incidents"]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the processes to kill in Linux's /proc")
def test_engine_controller_and_node_are_lost_and_no_answer_is_wrong(tmp_path):
    publish_variant(publish_tiny_release(tmp_path / "store"))
    incidents = record_of("bench_recovery.py", tmp_path / "store", "--rollouts", "2")
    assert [row["what"] for row in incidents] == [
        "2 rollouts and reverts",
        "engine process killed",
        "controller killed",
        "node lost",
        "node back",
    ]
    assert all(row["wrong"] == 0 and row["fresh"] for row in incidents), incidents
    rollouts, engine, controller, node, back = incidents
    assert controller["stale"] == rollouts["failed"] == controller["failed"] == back["failed"] == 0
    # On a busy machine one request of some three hundred failed while its engine died (seen once in four runs).
    assert all(row["failed"] <= 0.01 * (row["fresh"] + row["stale"]) for row in (engine, node)), incidents


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the processes to kill in Linux's /proc")
def test_a_lost_head_ends_its_engines_and_a_box_on_its_own_notices_nothing(tmp_path):
    """Of one store: the cluster's control process is killed with SIGKILL, and then all that is left of it."""
    publish_tiny_release(tmp_path / "store", ("north_cars", "south_cars"))
    (lost,) = record_of(
        "bench_head_loss.py", tmp_path / "store", "--only", "memory", "--stay-lost", "--down-s", "5",
        RAY_gcs_rpc_server_reconnect_timeout_s="5",
    )  # fmt: skip
    assert (lost["engines_before"], lost["engines_left_when_mended"]) == (2, 0)
    assert lost["while_lost"]["fresh"], "engines answer until Ray ends them"
    assert lost["while_lost"]["failed"]
    assert lost["while_lost"]["wrong"] == 0
    box = lost["box_on_its_own"]
    assert box["fresh"]
    assert box["stale"] == box["failed"] == box["wrong"] == 0

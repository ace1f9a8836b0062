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


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the processes to kill in Linux's /proc")
def test_engine_controller_and_node_are_lost_and_no_answer_is_wrong(tmp_path):
    publish_variant(publish_tiny_release(tmp_path / "store"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, str(JOBS / "bench_recovery.py"), str(tmp_path / "store"), "--rollouts", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "record.json")], env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-3000:]
    incidents = json.loads((tmp_path / "record.json").read_text())["incidents"]
    assert [row["what"] for row in incidents] == [
        "2 rollouts and reverts",
        "engine process killed",
        "controller killed",
        "node lost",
        "node back",
    ]
    assert all(row["wrong"] == row["failed"] == 0 for row in incidents), incidents
    assert all(row["fresh"] for row in incidents)
    rollouts, _, controller, *_ = incidents
    assert controller["stale"] == rollouts["failed"] == 0

"""A merge search as a job on a real cluster: `ray start`, `ray job submit`, a release in the store."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from newcomer import gemel_environment
from tiny_workload import TINY_WORKLOAD

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300
NOT_UP_YET = ("Failed to connect", "No available agent")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A head node with a dashboard and a token, ended by its own process group."""
    # Unix sockets in it have long names.
    folder = tempfile.mkdtemp(prefix="gj", dir="/tmp")
    port, dashboard = free_port(), free_port()
    environment = gemel_environment(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{dashboard}",
    )
    ray = str(Path(sys.executable).with_name("ray"))
    head = subprocess.Popen(
        [
            ray, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
            # The agent that takes jobs has one port for all clusters of a machine, unless told otherwise.
            f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={folder}", "--object-store-memory=200000000", "--disable-usage-stats",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    yield ray, environment
    os.killpg(head.pid, signal.SIGKILL)
    head.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


def submit(cluster, *arguments):
    """Submit as soon as the cluster takes jobs; wait for the end."""
    ray, environment = cluster
    command = [ray, "job", "submit", "--working-dir", ".", "--", sys.executable, "jobs/merge_search.py", *arguments]
    until_s = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
        is_up = not any(told in done.stdout + done.stderr for told in NOT_UP_YET)
        if is_up or time.monotonic() > until_s:
            return done
        time.sleep(0.5)


def test_a_search_submitted_as_a_job_leaves_a_release(cluster, tmp_path, gemel):
    (tmp_path / "workload.yaml").write_text(TINY_WORKLOAD)
    gemel(tmp_path, "originals", "workload.yaml", "--steps", "40", "--parallel", "1", "--json")
    workload, store = tmp_path / "workload.yaml", tmp_path / "store"
    done = submit(cluster, str(workload), "--store", str(store), "--steps", "20", "--trials", "4", "--gate-margin", "1")
    assert "succeeded" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
    manifest = gemel(tmp_path, "show", "store", "--json")
    assert manifest["bytes_after"] < manifest["bytes_before"]


def test_a_job_with_a_bad_workload_fails_with_the_reason_in_its_log(cluster, tmp_path):
    (tmp_path / "workload.yaml").write_text(TINY_WORKLOAD.replace("seed: 1", "sed: 1"))
    done = submit(cluster, str(tmp_path / "workload.yaml"), "--store", str(tmp_path / "store"))
    assert "failed" in done.stdout
    assert "sed: unknown key; did you mean 'seed'?" in done.stdout

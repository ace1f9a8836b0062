"""Merge searches as real processes, on a real Ray, for tests that disturb them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from commands import run_gemel

SEARCH = (
    "search", "workload.yaml", "--steps", "20", "--trials", "6", "--gate-margin", "1", "--json", "--store"
)  # fmt: skip

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}


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

"""The script that makes a cluster of one machine: it starts three nodes with their labels, and ends all it started."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "serve_configs" / "local_cluster.sh"
LABELS = """
import json, ray
ray.init(logging_level="ERROR", log_to_driver=False)
print(json.dumps([{k: v for k, v in n["Labels"].items() if not k.startswith("ray.io")} for n in ray.nodes()]))
"""


@pytest.fixture
def environment():
    """Without what the tests' own cluster is told, and with a folder whose name leaves room for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="gc", dir="/tmp") as folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        yield kept | {"GEMEL_CLUSTER": f"{folder}/c", "PATH": path}


def run(environment, *command):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_three_nodes_carry_their_labels_and_none_of_their_processes_outlives_the_stop(environment):
    folder = Path(environment["GEMEL_CLUSTER"])
    try:
        exports = run(environment, SCRIPT, "start")
        told = dict(line.removeprefix("export ").split("=", 1) for line in exports.splitlines())
        assert (folder / "token").stat().st_mode & 0o077 == 0
        found = json.loads(run(environment | told, sys.executable, "-c", LABELS))
        assert sorted(found, key=str) == [{"edge": "box-a"}, {"edge": "box-b"}, {"role": "head"}]
        leaders = {int(path.read_text()) for path in folder.glob("*.pid")}
        refused = subprocess.run([SCRIPT, "start"], env=environment, capture_output=True, text=True)
        assert (refused.returncode, "is in" in refused.stderr) == (2, True)
    finally:
        run(environment, SCRIPT, "stop")
    assert len(leaders) == 3
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    alive = {int(line.split()[0]) for line in listed.splitlines() if not line.split()[1].startswith("Z")}
    assert leaders & alive == set()
    assert not folder.exists()

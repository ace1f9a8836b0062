"""What the end-to-end tests start, all of it real processes."""

import json
import subprocess
import sys

import pytest
from commands import run_gemel
from newcomer import gemel_environment

# These start Ray, which wants a process that begins and ends as Python's do.
STARTS_RAY = ("demo",)


@pytest.fixture(scope="session")
def gemel():
    """Run a gemel command in a folder; its JSON document."""

    def run(folder, *arguments, code=0):
        run_command = _run_alone if arguments[0] in STARTS_RAY else run_gemel
        done = run_command(folder, *map(str, arguments), environment=gemel_environment())
        assert done.returncode == code, done.stderr[-3000:]
        return json.loads(done.stdout) if "--json" in arguments else done.stdout + done.stderr

    return run


def _run_alone(folder, *arguments, environment):
    command = [sys.executable, "-c", "from gemel_ray.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)

"""What the end-to-end tests start, all of it real processes."""

import json
import subprocess
import sys

import pytest
from newcomer import gemel_environment


@pytest.fixture(scope="session")
def gemel():
    """Run a gemel command in a folder; its JSON document."""

    def run(folder, *arguments, code=0):
        command = [sys.executable, "-c", "from gemel_ray.cli.main import main; main()", *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=gemel_environment(), capture_output=True, text=True, timeout=500)
        assert done.returncode == code, done.stderr[-3000:]
        return json.loads(done.stdout) if "--json" in arguments else done.stdout + done.stderr

    return run

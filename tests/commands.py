"""Gemel commands in real processes that begin with torch in memory: importing it is most of what a short one takes."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "torchvision"])


def run_gemel(folder, *arguments, environment=None, timeout_s=500):
    """What `gemel` with these arguments does in a folder: exit code, standard output and errors.

    Not for commands that start Ray: what Python does at the exit of a process is not done.
    """
    told = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as kept:
        printed = [Path(kept, name) for name in ("out", "errors")]
        process = _processes.Process(target=_become, args=(folder, told, dict(environment or os.environ), printed))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["gemel", *told], timeout_s)
        out, errors = (path.read_text() for path in printed)
        return subprocess.CompletedProcess(["gemel", *told], process.exitcode, out, errors)


def _become(folder, arguments, environment, printed):
    for descriptor, path in zip((1, 2), printed, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["gemel", *arguments]

    from gemel_ray.cli.main import main

    main()

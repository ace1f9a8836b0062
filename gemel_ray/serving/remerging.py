"""A merge search as a job on a Ray cluster, from whatever machine can reach its dashboard."""

from __future__ import annotations

import shlex
from pathlib import Path

from ray.job_submission import JobSubmissionClient


def submit_search(address: str, folder: Path, arguments: list[str]) -> str:
    """Run `gemel` with these arguments there, in a copy of a folder; the job's name.

    gemel_ray must be installed on the cluster. Raises what Ray's client raises.
    """
    client = JobSubmissionClient(address)
    job: str = client.submit_job(
        entrypoint=shlex.join(["gemel", *arguments]),
        runtime_env={"working_dir": str(folder)},
        metadata={"by": "gemel drift watch"},
    )
    return job

"""One real Ray cluster for the whole session."""

import os
import secrets
import shutil
import tempfile
import warnings

import pytest

# Ray reads these while it is imported, and hands them on to the processes it starts.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_metrics_report_interval_ms="1000",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
)
# Its own modules trip over pydantic's deprecations while they are imported, once.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    import ray.serve
    import ray.tune


@pytest.fixture(scope="session")
def ray_session():
    """Ray on two cores with a token of its own; its folder is short, since Unix sockets in it have long names."""
    folder = tempfile.mkdtemp(prefix="gr", dir="/tmp")
    ray.init(
        num_cpus=2,
        labels={"edge": "box-a"},
        object_store_memory=200_000_000,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)

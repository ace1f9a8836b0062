"""Fixtures for all tests."""

import os
import secrets
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Ray reads these while it is imported, by whatever test comes first, and hands them on to the processes it starts.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_metrics_report_interval_ms="1000",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
)

# Speed is measured in benchmarks; a busy machine must not fail a test. The same examples at every run.
settings.register_profile("house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

SHARED_VIDEO = Path(__file__).resolve().parent.parent.parent / "shared" / "video"


@pytest.fixture(scope="session")
def shared_video():
    """The folder of real camera clips; tests that need it skip where it is absent."""
    if not SHARED_VIDEO.is_dir():
        pytest.skip("the real camera clips (../shared/video) are not here")
    return SHARED_VIDEO

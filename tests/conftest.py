"""Fixtures for all tests."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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

"""A store on the test's own disk."""

import pytest

from gemel_ray.weights.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store", create=True)

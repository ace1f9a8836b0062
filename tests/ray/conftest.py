"""One real Ray cluster for the whole session."""

import shutil
import tempfile
import warnings

import pytest

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

"""One real Ray cluster for the whole session, and one of several nodes for a module that takes nodes away."""

import shutil
import tempfile
import warnings

import pytest
from searching import NODE, document_of
from tiny_workload import TINY_WORKLOAD

# Its own modules trip over pydantic's deprecations while they are imported, once.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    import ray.serve
    import ray.tune
    from ray.cluster_utils import Cluster


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


@pytest.fixture(scope="module")
def cluster():
    """Two nodes beside the head that are there already, as on a real cluster; else a search starts a Ray of its own."""
    found = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    for _ in range(2):
        found.add_node(**NODE)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workload of two tiny queries with trained originals, for searches that a module runs one after another."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "workload.yaml").write_text(TINY_WORKLOAD)
    rows = document_of(folder, "originals", "workload.yaml", "--steps", "40")
    assert [row["cached"] for row in rows] == [False, False]
    return folder

"""The bench: simulated, CPU, CUDA."""

import pytest
import torch
from device_benches import SimulatedBench, TorchBench
from tiny_release import publish_tiny_release

from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.store import open_store


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """Four small real models in two pairs that share layers."""
    return publish_tiny_release(tmp_path_factory.mktemp("conformance") / "store")


@pytest.fixture(scope="session")
def fetch(release, tmp_path_factory):
    """From a blob's name to its file."""
    return LocalCache(open_store(release.store), tmp_path_factory.mktemp("box")).fetch


@pytest.fixture(params=["simulated", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench(request, release, fetch):
    """Makes devices of one kind, and closes them after the test."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    if request.param == "simulated":
        made = SimulatedBench(release)
    else:
        made = TorchBench(release, fetch, torch.device(request.param))
    yield made
    made.close()

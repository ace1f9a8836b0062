"""Training a workload's originals: the same whatever runs beside them, kept by content."""

from pathlib import Path

import pytest
import torch

from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.fleet import train_fleet

OPTIONS = {"steps": 2, "seed": 0, "family": True}


def workload(**changes):
    feed = {"kind": "streets", "seed": 0, "frames": 150, "width": 32, "height": 32}
    model = {"architecture": "squeezenet1_1", "classes": ["background", "vehicle"], "input_size": 32}
    data = {
        "name": "w",
        "feeds": {"f": feed, "g": feed | {"seed": 1} | changes},
        "queries": [{"name": f"{feed}_cars", "feed": feed, "model": model} for feed in "fg"],
    }
    return parse_workload(data, source="w", base=Path())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    # As the processes beside each other have: sums of another number of threads differ in their last bits.
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("originals")
    return folder, train_fleet(workload(), folder, **OPTIONS)


def weights_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.slow
def test_processes_beside_each_other_train_the_same_models(trained, tmp_path):
    folder, _ = trained
    train_fleet(workload(), tmp_path, **OPTIONS, parallel=2)
    assert weights_in(tmp_path) == weights_in(folder)


def test_what_is_there_is_kept_and_what_depends_on_a_change_is_trained_again(trained):
    folder, first = trained
    assert [original.cached for original in first] == [False, False]
    assert [original.cached for original in train_fleet(workload(), folder, **OPTIONS)] == [True, True]
    # Relatives descend from an ancestor that has seen all their feeds.
    assert [original.cached for original in train_fleet(workload(traffic=2), folder, **OPTIONS)] == [False, False]


def test_nothing_half_written_is_left_behind(trained):
    folder, _ = trained
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}

"""Training a workload's originals: the same whatever runs beside them, kept by content."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gemel_ray.spec.errors import GemelError, InputError, ModelError, StoreError
from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.fleet import train_fleet

OPTIONS = {"steps": 2, "seed": 0, "family": True}


def workload(*, input_size=32, **changes):
    feed = {"kind": "streets", "seed": 0, "frames": 150, "width": 32, "height": 32}
    model = {"architecture": "squeezenet1_1", "classes": ["background", "vehicle"], "input_size": input_size}
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


def test_weights_are_readable_for_whom_the_umask_says(trained):
    folder, _ = trained
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize(
    ("ending", "damaged"),
    [
        (".json", lambda text: b"{"),
        (".json", lambda text: b"[]"),
        (".json", lambda text: b"\xff"),
        (".safetensors", lambda weights: weights[:1000]),
        (".safetensors", lambda weights: weights[:-4]),
    ],
    ids=["open bracket", "list", "no text", "cut short", "end missing"],
)
def test_what_is_damaged_there_is_trained_again(tmp_path, ending, damaged):
    train_fleet(workload(), tmp_path, **OPTIONS)
    whole, path = weights_in(tmp_path), tmp_path / f"f_cars{ending}"
    path.write_bytes(damaged(path.read_bytes()))
    assert [original.cached for original in train_fleet(workload(), tmp_path, **OPTIONS)] == [False, True]
    assert weights_in(tmp_path) == whole


@pytest.fixture
def never_trained(tmp_path):
    """A file where a folder is wanted, and a report that nothing may come to."""
    (tmp_path / "w.yaml").write_text("name: w")

    def report(line):
        raise AssertionError(f"training began: {line}")

    return tmp_path, report


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained(never_trained, monkeypatch):
    folder, report = never_trained
    for out in (folder / "w.yaml", folder / "w.yaml" / "originals", Path("/proc/none")):
        with pytest.raises(InputError, match=f"{out}: originals cannot be written there"):
            train_fleet(workload(), out, **OPTIONS, report=report)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"the originals take 5\.\d MiB, 1000 B are free there; free space"):
        train_fleet(workload(), folder / "full", **OPTIONS, report=report)


def test_frames_too_small_for_the_model_are_told_before_anything_is_trained_or_made(never_trained):
    folder, report = never_trained
    with pytest.raises(ModelError, match="query 'f_cars': squeezenet1_1 cannot answer a frame of input_size 8"):
        train_fleet(workload(input_size=8), folder / "out", **OPTIONS, report=report)
    assert not (folder / "out").exists()


def test_weights_that_cannot_be_saved_after_all_leave_nothing_half_written(tmp_path):
    (tmp_path / "f_cars.safetensors").mkdir()
    with pytest.raises(StoreError, match=r"f_cars\.safetensors cannot be written: .*; free space or correct"):
        train_fleet(workload(), tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["f_cars.safetensors"]


def test_other_frames_of_the_same_feed_are_trained_on_again(tmp_path):
    """Whoever adds pictures to a folder keeps its name."""
    pictures = tmp_path / "pictures"
    for number in range(160):
        folder = pictures / ("background", "vehicle")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(folder / f"{number:03}.png")
    data = {"name": "w", "feeds": {"f": {"kind": "image_folder", "path": str(pictures)}}}
    model = {"architecture": "squeezenet1_1", "classes": ["background", "vehicle"], "input_size": 32}
    asked = parse_workload(data | {"queries": [{"name": "q", "feed": "f", "model": model}]}, source="w", base=Path())

    def cached():
        return [original.cached for original in train_fleet(asked, tmp_path / "out", **OPTIONS)]

    assert [cached(), cached()] == [[False], [True]]
    Image.new("RGB", (32, 32)).save(pictures / "vehicle" / "000.png")
    assert [cached(), cached()] == [[False], [True]]


DIVERGES = """
import torch
from torchvision.models import squeezenet1_1

class Diverging(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.inner = squeezenet1_1(num_classes=num_classes)

    def forward(self, images):
        return self.inner(images) * (float("nan") if self.training else 1.0)
"""


def test_one_that_cannot_be_trained_costs_the_others_nothing(tmp_path, monkeypatch):
    (tmp_path / "diverging_models.py").write_text(DIVERGES)
    monkeypatch.syspath_prepend(tmp_path)
    found = workload()
    first, second = found.queries
    factory = {"architecture": None, "factory": "diverging_models:Diverging", "task": "classification"}
    bad = first.model_copy(update={"model": first.model.model_copy(update=factory)})
    found, told = found.model_copy(update={"queries": (bad, second)}), []
    options = OPTIONS | {"family": False, "allow_factories": True}
    with pytest.raises(GemelError, match="training diverged"):
        train_fleet(found, tmp_path / "out", **options, report=told.append)
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["g_cars.safetensors"]
    assert told[1].startswith("f_cars could not be trained (1 of 2): ")

"""What a user may get wrong, told by every command in one screen with the way out, and nothing left behind."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from newcomer import gemel_environment
from safetensors.torch import save_file
from tiny_release import publish_merged, publish_tiny_release

from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.models import build_model

WORKLOAD = """
name: tiny
feeds:
  a: {kind: streets, seed: 0, frames: 300}
queries:
  - {name: north_cars, feed: a, model: {architecture: ARCHITECTURE, classes: [background, car], input_size: 32WEIGHTS}}
nodes:
  - {name: box, memory: MEMORY}
"""


def written(folder, architecture="squeezenet1_1", weights="", memory="64MiB"):
    text = WORKLOAD.replace("ARCHITECTURE", architecture).replace("MEMORY", memory)
    path = folder / "workload.yaml"
    path.write_text(text.replace("WEIGHTS", f", weights: {weights}" if weights else ""))
    return path


@pytest.mark.parametrize(
    ("workload", "told"),
    [
        ({"architecture": "resnet19"}, "unknown architecture 'resnet19'; did you mean 'resnet1"),
        ({}, "query 'north_cars': its model has no 'weights'; name a file, or train one with `gemel originals`"),
        ({"weights": "none.safetensors"}, "no such weights file"),
        ({"weights": "nan.safetensors"}, "nan.safetensors: tensor 'classifier.1.bias' holds NaN or infinite values"),
        ({"architecture": "alexnet", "weights": "other.safetensors"}, "alexnet cannot answer a frame of input_size 32"),
        ({"weights": "cut.safetensors"}, "cut.safetensors: is damaged or not a safetensors file"),
        (
            {"weights": "other.safetensors"},
            "tensor 'classifier.1.bias' has shape (3,), the model needs (2,)",
        ),
    ],
    ids=["architecture", "no weights", "missing file", "not finite", "frame size", "cut file", "wrong shape"],
)
def test_a_search_says_what_is_wrong_with_a_model_before_anything_starts(tmp_path, gemel, workload, told):
    torch.manual_seed(0)
    other = build_model(ModelSpec(architecture="squeezenet1_1", classes=("a", "b", "c"), input_size=32))
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    nan = {"classifier.1.bias": torch.full((2,), torch.nan), "classifier.1.weight": torch.zeros(2, 512, 1, 1)}
    save_file(other.state_dict() | nan, tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:1000])
    printed = gemel(tmp_path, "search", written(tmp_path, **workload), "--store", "store", code=2)
    assert told in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("tiny") / "store").store


def test_a_budget_smaller_than_one_model_is_refused_with_the_query_that_does_not_fit(tmp_path, gemel, store):
    printed = gemel(tmp_path, "serve", written(tmp_path), "--store", store, "--memory", "1MiB", code=1)
    assert "query 'north_cars': its weights alone take" in printed
    assert "raise the budget" in printed


def test_a_node_that_the_workload_lacks_is_told(tmp_path, gemel, store):
    printed = gemel(tmp_path, "serve", written(tmp_path), "--store", store, "--node", "bax", code=2)
    assert "--node 'bax' is not in the workload; did you mean 'box'?" in printed


def test_a_port_in_use_is_told(tmp_path, gemel, store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        printed = gemel(tmp_path, "serve", written(tmp_path), "--store", store, "--port", port, code=1)
    assert f"127.0.0.1:{port} cannot be used" in printed


def test_a_truncated_blob_is_found_and_never_served(tmp_path, gemel):
    made = publish_tiny_release(tmp_path / "store")
    blob = max(made.store.glob("blobs/sha256/*/*.safetensors"), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-100])
    (problem,) = gemel(tmp_path, "verify", "store", "--json", code=1)
    assert blob.name in problem["path"]
    assert "is damaged" in problem["what"]
    printed = gemel(tmp_path, "serve", written(tmp_path), "--store", "store", code=1)
    assert "is damaged" in printed
    assert "restore the file" in printed


@pytest.mark.parametrize("command", ["profile", "serve", "edge"])
def test_a_way_to_compute_that_is_not_known_is_refused_with_the_nearest_one(tmp_path, gemel, command):
    told = {"profile": ("store",)}.get(command, (written(tmp_path), "--store", "store"))
    printed = gemel(tmp_path, command, *told, "--way", "bfloat61", code=2)
    assert "--way 'bfloat61' is no way to compute; did you mean 'bfloat16'" in printed


def test_a_damaged_release_is_listed_beside_those_to_go_back_to(tmp_path, gemel):
    publish_merged(tmp_path, ("north_cars", "south_cars"))
    manifest = tmp_path / "store" / "releases" / "000001.json"
    manifest.write_text(manifest.read_text()[:-300])
    first, second = gemel(tmp_path, "releases", "store", "--json", code=1)
    assert (first["release"], first["bytes_after"], second["is_head"], second["problem"]) == (1, None, True, None)
    assert "is not a manifest this version can read; restore it from a copy" in first["problem"]
    assert "damaged" in gemel(tmp_path, "releases", "store", code=1)
    assert "1 problem" in gemel(tmp_path, "verify", "store", code=1).splitlines()[0]


@pytest.mark.parametrize(("command", "uri"), [("releases", "foo://bar"), ("gc", "file:///a b")])
def test_what_is_no_uri_of_a_store_is_wrong_input(tmp_path, gemel, command, uri):
    printed = gemel(tmp_path, command, uri, code=2)
    assert f"error: store '{uri}' cannot be opened" in printed
    assert "Traceback" not in printed


def test_what_the_workload_asks_and_the_release_does_not_answer_is_told(tmp_path, gemel, store):
    """It is a port in use that keeps this service from starting."""
    path = written(tmp_path)
    path.write_text(path.read_text().replace("feed: a", "feed: a, slo_ms: 400", 1))
    second = "queries:\n  - {name: east, feed: a, model: {architecture: alexnet, classes: [background, car]}}"
    path.write_text(path.read_text().replace("queries:", second))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in ("serve", "edge"):
            printed = gemel(tmp_path, command, path, "--store", store, "--port", port, code=1)
            assert "with fps 10 (workload: 30), slo_ms 60000 (workload: 400)," in printed
            assert "; publish what the workload says: gemel search WORKLOAD --store STORE --from-release 1" in printed
            assert "query 'east' is not in release 1 and is not served (known: north_cars," in printed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("arguments", [("releases", "--json"), ("releases",)])
def test_a_full_disk_behind_stdout_is_told(store, arguments):
    command = [sys.executable, "-c", "from gemel_ray.cli.main import main; main()", *arguments, str(store)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=gemel_environment())
    assert done.stderr == (
        "error: stdout cannot be written (No space left on device); free space there, or choose another place\n"
    )
    assert done.returncode == 1


def test_a_path_that_is_no_text_is_told():
    command = [sys.executable, "-c", "from gemel_ray.cli.main import main; main()", "show", b"\xff"]
    done = subprocess.run(command, capture_output=True, text=True, env=gemel_environment(), errors="replace")
    assert done.returncode == 2
    assert "cannot be written as text (surrogates not allowed); give a name that is UTF-8" in done.stderr


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path, gemel, store):
    printed = gemel(tmp_path, "profile", store, "--out", "/proc/profile.json", code=2)
    assert "/proc/profile.json: cannot be written" in printed
    assert "measuring" not in printed
    rates = ("--rates", "t4", "--trace", "/proc/trace.json")
    assert "/proc/trace.json: cannot be written" in (printed := gemel(tmp_path, "simulate", store, *rates, code=2))
    assert "simulating" not in printed
    assert "drawing" not in gemel(tmp_path, "report", store, "--out", "/proc/report.html", code=2)

"""Keeping a store by command: real models merged, compared, reverted, exported; what is not needed removed."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_release import CLASSES, noise, publish_merged, publish_tiny_release

from gemel_ray.spec.errors import CorruptBlobError, InputError, ModelError
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.release import ReleasedQuery
from gemel_ray.spec.workload import ModelSpec
from gemel_ray.vision.binding import layer_tensors
from gemel_ray.vision.exporting import export_query
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import task_for
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.models import BlobReader, load_state, store_models
from gemel_ray.weights.store import open_store

QUERIES = ("north_cars", "south_cars", "north_people")


@pytest.fixture
def kept(tmp_path):
    return publish_merged(tmp_path, QUERIES)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """The same, for tests that leave the store as it is."""
    return publish_merged(tmp_path_factory.mktemp("fixed"), QUERIES)


def answers(model, spec):
    with torch.inference_mode():
        return model(task_for(spec).prepare([noise(seed) for seed in range(3)]))


def released_answers(store, query):
    """What a query of HEAD answers, from the weights in the store alone."""
    released = store.manifest().queries[query]
    model = build_model(released.query.model)
    model.load_state_dict(load_state(BlobReader(store), released.weights, released.slices))
    return answers(model, released.query.model)


# diff, revert, gc


def test_a_diff_tells_the_bytes_that_an_edge_box_really_fetches(fixed, tmp_path, gemel):
    store, _, _ = fixed
    told = gemel(tmp_path, "diff", store.locate(), 1, 2, "--json")
    cache = LocalCache(store, tmp_path / "cache")
    cache.pull(1)
    before = set((tmp_path / "cache").rglob("*.safetensors"))
    cache.pull(2)
    fetched = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors") if path not in before]
    assert (told["fetch_blobs"], told["fetch_file_bytes"]) == (len(fetched), sum(fetched))
    assert told["kept_blobs"] == 1
    assert {row["query"]: row["state"] for row in told["queries"]} == {
        "north_cars": "changed", "south_cars": "changed", "north_people": "unchanged",
    }  # fmt: skip
    assert sum(row["layer_bytes"] for row in told["share_now"]) == told["bytes_before"] - told["bytes_after"]


def test_a_diff_is_told_to_people_in_one_screen(fixed, tmp_path, gemel):
    told = gemel(tmp_path, "diff", fixed[0].locate(), 1, 2)
    assert "Layers that share now" in told
    assert "north_cars" in told
    assert len(told.splitlines()) < 40


def test_a_reverted_query_answers_as_its_original_does_and_the_others_as_before(kept, tmp_path, gemel):
    store, originals, merged = kept
    made = gemel(tmp_path, "revert", store.locate(), "--query", "south_cars", "--json")
    assert (made["release"], made["parent"], store.head()) == (3, 2, 3)
    specs = {name: released.query.model for name, released in store.manifest().queries.items()}
    for name, models in (("south_cars", originals), ("north_cars", merged), ("north_people", merged)):
        assert torch.equal(released_answers(store, name), answers(models[name], specs[name]))
    assert not torch.equal(
        answers(originals["south_cars"], specs["south_cars"]), answers(merged["south_cars"], specs["south_cars"])
    )
    assert store.verify() == []


def test_a_mistyped_query_is_told_and_nothing_changes(fixed, tmp_path, gemel):
    store, _, _ = fixed
    printed = gemel(tmp_path, "revert", store.locate(), "--query", "south_car", code=2)
    assert "query 'south_car': release 2 has none of that name; did you mean 'south_cars'?" in printed
    assert (store.releases(), store.head()) == ([1, 2], 2)


def test_what_is_left_after_gc_is_pulled_and_answers_as_before(kept, tmp_path, gemel):
    store, _, _ = kept
    gemel(tmp_path, "revert", store.locate(), "--query", "south_cars", "--json")
    before = {name: released_answers(store, name) for name in QUERIES}
    told = gemel(tmp_path, "gc", store.locate(), "--keep", 1, "--grace-hours", 0, "--json")
    assert told["releases"] == [2]
    assert told["freed_bytes"] > 0
    assert (store.releases(), store.verify(), store.unused_blobs()) == ([1, 3], [], [])
    assert LocalCache(store, tmp_path / "cache").pull().release == 3
    assert all(torch.equal(released_answers(store, name), before[name]) for name in QUERIES)


# export


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("query", ["north_cars", "north_people"])
def test_an_exported_state_dict_makes_a_plain_model_answer_as_the_merged_one(fixed, tmp_path, query, ending):
    store, _, merged = fixed
    out = tmp_path / f"model.{ending}"
    found = export_query(store, query, out)
    state = load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
    spec = store.manifest().queries[query].query.model
    torch.manual_seed(99)
    plain = build_model(spec)
    plain.load_state_dict(state)
    assert torch.equal(answers(plain, spec), answers(merged[query], spec))
    assert (found.file_bytes, found.release, found.classes) == (out.stat().st_size, 2, CLASSES)
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_layer_that_repeats_within_one_model_is_exported_at_each_of_its_places(kept, tmp_path, ending):
    store, originals, _ = kept
    model, paths = originals["south_cars"], ("features.3.expand3x3", "features.4.expand3x3")
    model.get_submodule(paths[1]).load_state_dict(model.get_submodule(paths[0]).state_dict())
    members = tuple(LayerRef("south_cars", path) for path in paths)
    repeated = MergeConfiguration(shared=(SharedLayer(signature="3x3", layer_bytes=36_864, members=members),))
    names = layer_tensors({"south_cars": model}, repeated)
    weights, blobs = store_models(store, {"south_cars": model.state_dict()}, repeated, names)
    former = store.manifest(2)
    queries = {"south_cars": former.queries["south_cars"].model_copy(update={"weights": weights["south_cars"]})}
    held = {"bytes_after": sum(info.tensor_bytes for info in blobs.values()), "merge_configuration": repeated}
    store.publish(former.model_copy(update={"queries": queries, "blobs": blobs} | held))
    out = tmp_path / f"model.{ending}"
    export_query(store, "south_cars", out)
    state = load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert len(state) == len(model.state_dict())


def test_an_exported_program_takes_batches_of_any_size(fixed, tmp_path):
    store, _, merged = fixed
    export_query(store, "north_cars", tmp_path / "model.pt2", release=2)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for images in (1, 5):
        batch = torch.rand(images, 3, 32, 32)
        with torch.inference_mode():
            torch.testing.assert_close(program(batch), merged["north_cars"](batch))


def test_onnx_is_computed_alike_or_the_way_to_it_is_told(fixed, tmp_path):
    store, _, merged = fixed
    out = tmp_path / "model.onnx"
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        with pytest.raises(InputError, match="pip install onnx onnxscript onnxruntime"):
            export_query(store, "north_cars", out)
        assert not out.exists()
        return
    export_query(store, "north_cars", out)
    import onnxruntime

    batch = torch.rand(3, 3, 32, 32)
    (found,) = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"]).run(
        None, {"images": batch.numpy()}
    )
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(found), merged["north_cars"](batch), rtol=1e-4, atol=1e-4)


def test_an_original_is_exported_from_the_release_that_is_named(fixed, tmp_path):
    store, originals, _ = fixed
    export_query(store, "south_cars", tmp_path / "original.pt", release=1)
    state = torch.load(tmp_path / "original.pt", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in originals["south_cars"].state_dict().items())


def test_a_file_is_readable_for_whom_the_umask_says(fixed, tmp_path):
    former = os.umask(0o022)
    try:
        export_query(fixed[0], "north_cars", tmp_path / "model.pt")
    finally:
        os.umask(former)
    assert (tmp_path / "model.pt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("query", "out", "format", "told"),
    [
        ("north_car", "m.pt", None, "release 2 has no query 'north_car'; did you mean 'north_cars'"),
        ("north_cars", "m.bin", None, "m.bin: its ending tells no format; choose safetensors, torch, exported or onnx"),
        ("north_cars", "m.pt", "pickle", "--format 'pickle' is not known; choose safetensors"),
        ("north_cars", "m.pt", "safetensors", "m.pt: ends as files of --format torch do, and --format safetensors is"),
        ("north_cars", ".", None, "is a folder; name a file in it"),
    ],
)
def test_what_cannot_be_exported_is_told_and_nothing_is_written(fixed, tmp_path, query, out, format, told):
    with pytest.raises(InputError) as error:
        export_query(fixed[0], query, tmp_path / out, format=format)
    assert told in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_detector_is_exported_as_a_state_dict_only(tmp_path):
    made = publish_tiny_release(tmp_path / "store", ("harbour_boxes",))
    store = open_store(made.store)
    with pytest.raises(InputError, match=r"number of boxes that depends on the frame.*choose safetensors or torch"):
        export_query(store, "harbour_boxes", tmp_path / "boxes.pt2")
    export_query(store, "harbour_boxes", tmp_path / "boxes.safetensors")
    state = load_file(tmp_path / "boxes.safetensors")
    own = made.models["harbour_boxes"].state_dict()
    assert all(torch.equal(state[name], own[name]) for name in own)


def test_a_damaged_blob_is_never_exported_and_the_former_file_stays(kept, tmp_path):
    store, _, _ = kept
    out = tmp_path / "model.pt"
    out.write_text("former")
    blob = Path(store.locate_blob(store.manifest().queries["north_cars"].weights[""]))
    blob.write_bytes(blob.read_bytes()[:-4])
    with pytest.raises(CorruptBlobError):
        export_query(store, "north_cars", out)
    assert out.read_text() == "former"


class Restless(torch.nn.Module):
    """Answers otherwise each time."""

    def __init__(self, num_classes):
        super().__init__()
        self.last = torch.nn.Linear(3, num_classes)

    def forward(self, images):
        return self.last(images.mean(dim=(2, 3))) + torch.rand(len(images), 1)


def test_a_model_that_answers_otherwise_when_it_is_read_back_is_not_put_in_place(kept, tmp_path):
    store, _, _ = kept
    spec = ModelSpec(factory="test_store_commands:Restless", task="classification", classes=CLASSES, input_size=32)
    weights, blobs = store_models(store, {"odd": Restless(3).state_dict()}, MergeConfiguration(), {})
    query = store.manifest().queries["north_cars"].query.model_copy(update={"name": "odd", "model": spec})
    odd = ReleasedQuery(query=query, weights=weights["odd"])
    former = store.manifest(1)
    held = {"bytes_after": former.bytes_after + sum(info.tensor_bytes for info in blobs.values())}
    store.publish(
        former.model_copy(update={"queries": former.queries | {"odd": odd}, "blobs": former.blobs | blobs} | held)
    )
    with pytest.raises(ModelError, match="answers otherwise than the release's model; nothing was written"):
        export_query(store, "odd", tmp_path / "odd.pt", allow_factories=True)
    with pytest.raises(ModelError, match="--allow-factories"):
        export_query(store, "odd", tmp_path / "odd.pt")
    assert not (tmp_path / "odd.pt").exists()


def test_export_by_command_says_what_the_model_takes(fixed, tmp_path, gemel):
    told = gemel(tmp_path, "export", fixed[0].locate(), "north_people", "--out", "m.safetensors", "--json")
    assert told["takes"].startswith("float32 N x 3 x 32 x 32")
    assert (tmp_path / told["file"]).stat().st_size == told["file_bytes"]


def test_brackets_in_a_path_are_its_own(fixed, tmp_path, gemel):
    out = "a[bold]x[x].safetensors"
    printed = gemel(tmp_path, "export", fixed[0].locate(), "north_cars", "--out", out)
    assert out in printed
    assert (tmp_path / out).exists()

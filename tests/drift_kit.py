"""Two cameras' originals, and a release in which one of them has been merged badly and the other one well."""

import torch
from tiny_release import noise, publish_tiny_release

from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.workload import parse_workload
from gemel_ray.vision.models import build_model
from gemel_ray.weights.models import store_models
from gemel_ray.weights.store import open_store

GOOD, BAD = "south_cars", "north_cars"
# Of these the originals answer all classes, and the bad model most of them otherwise.
FRAMES = [noise(seed) for seed in range(24)]


def publish_drifting(folder):
    """Release 1 are the originals; in release 2 one query has weights that answer alike, the other one has not."""
    made = publish_tiny_release(folder, (BAD, GOOD))
    store = open_store(folder)
    root = made.manifest
    other = publish_tiny_release(folder.parent / "other", (BAD, GOOD), seed=8)
    model = build_model(root.queries[GOOD].query.model)
    model.load_state_dict({name: tensor * (1 + 1e-6) for name, tensor in made.models[GOOD].state_dict().items()})
    states = {BAD: other.models[BAD].state_dict(), GOOD: model.state_dict()}
    weights, blobs = store_models(store, states, MergeConfiguration(), {})
    queries = {name: root.queries[name].model_copy(update={"weights": weights[name]}) for name in states}
    held = sum(info.tensor_bytes for info in blobs.values())
    changed = {"queries": queries, "blobs": blobs, "bytes_after": held, "parent": 1}
    store.publish(root.model_copy(update={**changed, "merge_configuration": MergeConfiguration()}))
    return made


def a_workload(folder):
    """The workload that these releases could have been made from."""
    model = {"architecture": "squeezenet1_1", "classes": ["background", "car", "person"], "input_size": 32}
    return parse_workload(
        {
            "name": "tiny-street",
            "feeds": {"f": {"kind": "streets"}},
            "queries": [{"name": name, "feed": "f", "model": model} for name in (BAD, GOOD)],
            "nodes": [{"name": "box", "memory": "64MiB", "device": "cpu"}],
        },
        source="test",
        base=folder,
    )


def agreement(made, other, query):
    """The share of the frames that two releases' models answer alike."""
    with torch.inference_mode():
        pairs = zip(made.direct(query, FRAMES), other.direct(query, FRAMES), strict=True)
        return sum(one.label == two.label for one, two in pairs) / len(FRAMES)

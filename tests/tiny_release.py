"""A small real release in a store of its own, and the models it was made from."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gemel_ray.policy.grouping import group_slices
from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.release import Accuracy, Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.workload import ModelSpec, Query
from gemel_ray.vision.binding import bind, distinct_bytes, layer_tensors
from gemel_ray.vision.deltas import rank_bytes
from gemel_ray.vision.inspection import inspect_model
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import task_for
from gemel_ray.weights.models import store_models
from gemel_ray.weights.store import open_store

CLASSES = ("background", "car", "person")
ARCHITECTURES = {
    "north_cars": "squeezenet1_1",
    "south_cars": "squeezenet1_1",
    "north_people": "mobilenet_v3_small",
    "south_people": "mobilenet_v3_small",
    "harbour_boxes": "ssdlite320_mobilenet_v3_large",
    # Of many layers and more than one piece.
    "yard_dogs": "densenet121",
}
SHARED = {
    ("north_cars", "south_cars"): ("features.3.squeeze", "features.12.expand3x3"),
    ("north_people", "south_people"): ("features.11.block.3.0", "classifier.0"),
}


@dataclass
class TinyRelease:
    """A published release: `store` is its folder, `models` the bound models by query."""

    store: Path
    manifest: Manifest
    models: dict[str, torch.nn.Module]

    def direct(self, query, images):
        """What the bound model answers in one forward pass over the frames."""
        asked = self.manifest.queries[query].query
        task = task_for(asked.model, asked.score_threshold)
        with torch.inference_mode():
            return task.answers(self.models[query](task.prepare(images)), images)

    def bytes_of(self, *queries):
        """Bytes of the weights that these queries need together."""
        needed = {sha for query in queries for sha in self.manifest.blobs_of(query)}
        return sum(self.manifest.blobs[sha].tensor_bytes for sha in needed)


CLASSIFIERS = ("north_cars", "south_cars", "north_people", "south_people")


def publish_tiny_release(folder, queries=CLASSIFIERS, seed=3, rank=0, sliced=False):
    """Make the models of some of the queries, share a few layers, publish them as the next release of a store.

    With a rank every shared layer keeps private corrections; sliced, all layers of a kind share slices of the largest.

    The detector's workspace is larger than all models together; it is best published alone.
    """
    torch.manual_seed(seed)
    specs = {name: _spec(name) for name in queries}
    models = {name: _lively(name, build_model(spec)) for name, spec in specs.items()}
    before = distinct_bytes(models.values())
    configuration = _sliced(models) if sliced else _configuration(models, rank)
    bind(models, configuration)
    store = open_store(folder, create=True)
    states = {name: model.state_dict() for name, model in models.items()}
    weights, blobs = store_models(store, states, configuration, layer_tensors(models, configuration))
    manifest = Manifest(
        release=1,
        workload_name="tiny-street",
        workload_hash="0" * 64,
        queries={
            name: ReleasedQuery(
                query=_query(name), weights=weights[name], slices=configuration.slices_of(name), accuracy=_accuracy()
            )
            for name in queries
        },
        merge_configuration=configuration,
        blobs=blobs,
        bytes_before=before,
        bytes_after=sum(info.tensor_bytes for info in blobs.values()),
        provenance=Provenance(created_at="2026-01-01T00:00:00Z", command="test", seed=seed, versions={}),
    )
    return TinyRelease(Path(folder), store.publish(manifest), models)


def publish_variant(tiny, factor=1.003):
    """The next release of a store: other weights everywhere, which answer nearly as the first one's do."""
    store, models = open_store(tiny.store), copy.deepcopy(tiny.models)
    # Bound layers stand in several state dicts and must be scaled once.
    tensors = {tensor.data_ptr(): tensor for model in models.values() for tensor in model.state_dict().values()}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(factor)
    configuration = tiny.manifest.merge_configuration
    states = {name: model.state_dict() for name, model in models.items()}
    weights, blobs = store_models(store, states, configuration, layer_tensors(models, configuration))
    queries = {
        name: found.model_copy(update={"weights": weights[name]}) for name, found in tiny.manifest.queries.items()
    }
    changed = {"queries": queries, "blobs": blobs, "parent": tiny.manifest.release}
    return TinyRelease(tiny.store, store.publish(tiny.manifest.model_copy(update=changed)), models)


def publish_merged(folder, queries):
    """A store with release 1, the originals, and release 2, in which models share a few layers: the store, the
    originals and the merged models."""
    merged = publish_tiny_release(folder / "merged", queries)
    torch.manual_seed(8)
    models = {name: _lively(name, build_model(_spec(name))) for name in queries}
    for name in merged.models.keys() - {
        member for members in SHARED for member in members if set(members) <= set(queries)
    }:
        models[name] = merged.models[name]
    store = open_store(folder / "store", create=True)
    weights, blobs = store_models(
        store, {name: model.state_dict() for name, model in models.items()}, MergeConfiguration(), {}
    )
    changed = {
        "queries": {
            name: released.model_copy(update={"weights": weights[name], "accuracy": None})
            for name, released in merged.manifest.queries.items()
        },
        "blobs": blobs,
        "bytes_after": sum(info.tensor_bytes for info in blobs.values()),
        "merge_configuration": MergeConfiguration(),
    }
    store.publish(merged.manifest.model_copy(update=changed))
    for sha in merged.manifest.blobs:
        store.put_blob(open_store(merged.store).read_blob(sha))
    store.publish(merged.manifest.model_copy(update={"parent": 1}))
    return store, models, merged.models


def noise(seed, height=40, width=56):
    """A frame of coloured noise whose brightness depends on the seed."""
    rng = np.random.default_rng(seed)
    top = rng.integers(40, 256, 3)
    return (rng.random((height, width, 3)) * top).astype(np.uint8)


def _spec(name):
    detects = "boxes" in name
    return ModelSpec(architecture=ARCHITECTURES[name], classes=CLASSES, input_size=320 if detects else 32)


def _query(name):
    spec = _spec(name)
    return Query(name=name, feed="f", model=spec, accuracy_target=0.95, fps=10, slo_ms=60_000, score_threshold=0.9)


def _accuracy():
    return Accuracy(
        target=0.95, measure="agreement", agreement=0.97, lower_bound=0.95, gate_frames=500, validation_agreement=0.98
    )


def _lively(name, model):
    """Freshly initialised models answer nearly the same to every frame; statistics of real activations spread them."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.inference_mode():
        model(task_for(_spec(name)).prepare([noise(seed) for seed in range(100, 116)]))
    return model.eval()


def _sliced(models):
    inventories = [inspect_model(name, model, builder=ARCHITECTURES[name]) for name, model in models.items()]
    return MergeConfiguration.of(group_slices(inventories))


def _configuration(models, rank):
    layers = []
    for members, paths in SHARED.items():
        for path in paths if all(member in models for member in members) else ():
            module = models[members[0]].get_submodule(path)
            held = sum(parameter.nbytes for parameter in module.parameters())
            refs = tuple(LayerRef(member, path) for member in members)
            each = rank_bytes(module)
            layers.append(SharedLayer(signature=path, layer_bytes=held, members=refs, rank=rank, rank_bytes=each))
    return MergeConfiguration(shared=tuple(layers))

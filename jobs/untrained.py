"""A release of full-size models with weights as initialised, for benchmarks of the engine: what is measured is moved
and computed, whatever the answers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gemel_ray.policy.grouping import group_layers
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.workload import ModelSpec, Query
from gemel_ray.vision.binding import bind, distinct_bytes, layer_tensors
from gemel_ray.vision.inspection import inspect_model
from gemel_ray.vision.models import build_model
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.models import store_models
from gemel_ray.weights.store import open_store

CLASSES = ("background", "car")


@contextmanager
def release(
    architectures: Sequence[str], *, input_size: int, fps: float, slo_ms: float, merged: bool, seed: int = 0
) -> Iterator[tuple[Manifest, LocalCache]]:
    """One query for each architecture, published and pulled in temporary folders. Merged, all that can be shared is."""
    with TemporaryDirectory(prefix="gemel-bench-") as folder:
        store = Path(folder) / "store"
        publish(store, architectures, input_size=input_size, fps=fps, slo_ms=slo_ms, merged=merged, seed=seed)
        cache = LocalCache(open_store(store), Path(folder) / "box")
        yield cache.pull(1), cache


def publish(
    folder: Path,
    architectures: Sequence[str],
    *,
    input_size: int,
    fps: float,
    slo_ms: float,
    merged: bool,
    seed: int = 0,
) -> Manifest:
    """The same in a store of the caller's."""
    torch.manual_seed(seed)
    queries = {
        f"{place}_{name}": _query(f"{place}_{name}", name, input_size, fps, slo_ms)
        for place, name in enumerate(architectures)
    }
    store = open_store(folder, create=True)
    models = {name: build_model(query.model) for name, query in queries.items()}
    before = distinct_bytes(models.values())
    configuration = _everything(models) if merged else MergeConfiguration()
    bind(models, configuration)
    states = {name: model.state_dict() for name, model in models.items()}
    weights, blobs = store_models(store, states, configuration, layer_tensors(models, configuration))
    return store.publish(
        Manifest(
            release=1,
            workload_name="untrained",
            workload_hash="0" * 64,
            queries={name: ReleasedQuery(query=query, weights=weights[name]) for name, query in queries.items()},
            merge_configuration=configuration,
            blobs=blobs,
            bytes_before=before,
            bytes_after=sum(info.tensor_bytes for info in blobs.values()),
            provenance=Provenance(created_at="", command="benchmark", seed=seed, versions={}),
        )
    )


def _query(name: str, architecture: str, input_size: int, fps: float, slo_ms: float) -> Query:
    model = ModelSpec(architecture=architecture, classes=CLASSES, input_size=input_size)
    return Query(name=name, feed="noise", model=model, accuracy_target=0.95, fps=fps, slo_ms=slo_ms)


def _everything(models: Mapping[str, torch.nn.Module]) -> MergeConfiguration:
    inventories = [inspect_model(name, model, builder=name) for name, model in models.items()]
    return MergeConfiguration.of(group_layers(inventories, "exact"))

"""A family of releases for the tests of this folder: originals, and two steps of merging."""

import os
import time
from pathlib import Path

from weights_kit import a_query

from gemel_ray.spec.layers import LayerRef
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.release import Accuracy, BlobInfo, Manifest, Provenance, ReleasedQuery


def accuracy(agreement):
    return Accuracy(
        target=0.9, measure="m", agreement=agreement, lower_bound=agreement - 0.02, gate_frames=9,
        validation_agreement=agreement,
    )  # fmt: skip


def shared(path, *queries):
    return SharedLayer(signature=f"Conv {path}", layer_bytes=5, members=tuple(LayerRef(name, path) for name in queries))


def release(store, queries, *layers, parent=None, agreement=None, **asked):
    """Publish a release: for each query the bytes at each module path, and which layers share."""
    blobs, released = {}, {}
    for name, weights in queries.items():
        shas = {path: store.put_blob(data) for path, data in weights.items()}
        blobs |= {shas[p]: BlobInfo(tensor_bytes=len(d), file_bytes=len(d) + 3) for p, d in weights.items()}
        query = a_query(name).model_copy(update=asked)
        found = accuracy(agreement) if agreement and any(name in str(layer.members) for layer in layers) else None
        released[name] = ReleasedQuery(query=query, weights=shas, accuracy=found)
    manifest = Manifest(
        release=1, parent=parent, workload_name="w", workload_hash="0" * 64, queries=released,
        merge_configuration=MergeConfiguration(shared=layers), blobs=blobs, bytes_before=1000,
        bytes_after=sum(info.tensor_bytes for info in blobs.values()),
        provenance=Provenance(created_at="2026-11-24T00:00:00Z", command="test", seed=5, versions={}),
    )  # fmt: skip
    return store.publish(manifest)


ORIGINALS = {name: {"": f"{name} itself".encode()} for name in ("cars", "people", "boxes")}
PAIR = {
    "cars": {"": b"cars merged", "c1": b"c1 of", "c2": b"c2 of"},
    "people": {"": b"people merged", "c1": b"c1 of", "c2": b"c2 of"},
    "boxes": ORIGINALS["boxes"],
}
THREE = {
    "cars": {"": b"cars three", "c1": b"c1new", "c2": b"c2 of"},
    "people": {"": b"people three", "c1": b"c1new", "c2": b"c2 of"},
    "boxes": {"": b"boxes three", "c1": b"c1new"},
}


def publish_family(store):
    """Releases 1 (originals), 2 (cars and people share two layers), 3 (boxes shares one of them)."""
    release(store, ORIGINALS)
    release(store, PAIR, shared("c1", "cars", "people"), shared("c2", "cars", "people"), parent=1, agreement=0.95)
    three = shared("c1", "boxes", "cars", "people")
    release(store, THREE, three, shared("c2", "cars", "people"), parent=2, agreement=0.93)
    return store


def grow_old(store, hours=48):
    for path in Path(store.locate()).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3600 * hours,) * 2)

"""Small releases for the tests of this folder; needs no torch, so that the publishing processes start fast."""

from pathlib import Path

from gemel_ray.spec.release import BlobInfo, Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.workload import ModelSpec, Query


def a_query(name="cars"):
    model = ModelSpec(architecture="resnet18", classes=("background", "car"))
    return Query(name=name, feed="f", model=model, accuracy_target=0.95, fps=10, slo_ms=100)


def a_manifest(blobs, *, weights=None):
    """A manifest with one query, which uses the first blob unless told otherwise."""
    weights = weights or {"": next(iter(blobs))}
    held = sum(blobs[sha].tensor_bytes for sha in set(weights.values()))
    return Manifest(
        release=1,
        workload_name="w",
        workload_hash="0" * 64,
        queries={"cars": ReleasedQuery(query=a_query(), weights=weights)},
        blobs=blobs,
        bytes_before=held,
        bytes_after=held,
        provenance=Provenance(created_at="2026-11-24T00:00:00Z", command="test", seed=0, versions={}),
    )


def publish(store, data=b"weights", **options):
    """Publish a release whose only blob holds these bytes; the release and the blob's name."""
    sha = store.put_blob(data)
    info = BlobInfo(tensor_bytes=len(data), file_bytes=len(data))
    return store.publish(a_manifest({sha: info}), **options), sha


def blob_file(store, sha):
    return Path(store.locate_blob(sha))


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())

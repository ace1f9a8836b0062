"""Small real models and releases made of them by hand."""

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from gemel_ray.spec.release import BlobInfo, Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.workload import ModelSpec, Query
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import task_for

CLASSES = ("background", "car", "person")


@dataclass
class HandMade:
    """A release on disk, and the plain models it was made from."""

    folder: Path
    manifest: Manifest = None
    models: dict[str, torch.nn.Module] = field(default_factory=dict)

    def path(self, sha):
        """The `fetch` of this release."""
        return self.folder / f"{sha}.safetensors"

    def put(self, tensors):
        """Write tensors as a further blob; its name and info."""
        return put(self.folder, tensors)

    def direct(self, query, images):
        """What the plain model answers."""
        spec = self.manifest.queries[query].query
        task = task_for(spec.model, spec.score_threshold)
        with torch.inference_mode():
            return task.answers(self.models[query](task.prepare(images)), images)

    def bytes_of(self, *queries):
        """Bytes of the weights that these queries need together."""
        needed = {sha for query in queries for sha in self.manifest.blobs_of(query)}
        return sum(self.manifest.blobs[sha].tensor_bytes for sha in needed)


def put(folder, tensors):
    """Write tensors as a blob; its name and info."""
    data = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    sha = hashlib.sha256(data).hexdigest()
    (folder / f"{sha}.safetensors").write_bytes(data)
    return sha, BlobInfo(tensor_bytes=sum(t.nbytes for t in tensors.values()), file_bytes=len(data))


def make_release(folder, architectures, shared=(), *, slo_ms=60_000, score_threshold=0.0, options=None):
    """Queries with models of their own; all of a group of (query, module path) in `shared` get its first's weights."""
    torch.manual_seed(7)
    made = HandMade(folder)
    queries, blobs, weights = {}, {}, {}
    for name, architecture in architectures.items():
        kind = "factory" if ":" in architecture else "architecture"
        spec = ModelSpec(
            **{kind: architecture},
            task="detection" if "rcnn" in architecture else "classification",
            classes=CLASSES,
            input_size=32,
            options=(options or {}).get(name, {}),
        )
        made.models[name] = build_model(spec, allow_factories=True)
        queries[name] = Query(
            name=name,
            feed="f",
            model=spec,
            accuracy_target=0.95,
            fps=10,
            slo_ms=slo_ms,
            score_threshold=score_threshold,
        )
        weights[name] = {}
    states = {name: model.state_dict() for name, model in made.models.items()}
    for group in shared:
        layer = made.models[group[0][0]].get_submodule(group[0][1]).state_dict()
        sha, blobs_info = put(folder, {name: tensor.clone() for name, tensor in layer.items()})
        blobs[sha] = blobs_info
        for query, path in group:
            made.models[query].get_submodule(path).load_state_dict(layer)
            weights[query][path] = sha
            for name in layer:
                del states[query][f"{path}.{name}"]
    for name, state in states.items():
        weights[name][""], info = put(folder, state)
        blobs[weights[name][""]] = info
    held = sum(info.tensor_bytes for info in blobs.values())
    made.manifest = Manifest(
        release=1,
        workload_name="test",
        workload_hash="0" * 64,
        queries={name: ReleasedQuery(query=queries[name], weights=weights[name]) for name in queries},
        blobs=blobs,
        bytes_before=held,
        bytes_after=held,
        provenance=Provenance(created_at="2026-01-01T00:00:00Z", command="test", seed=0, versions={}),
    )
    return made


@pytest.fixture(scope="session")
def release_into():
    """make_release, for fixtures that live longer than a test."""
    return make_release


@pytest.fixture
def release_of(tmp_path):
    """make_release into a folder of this test."""
    return partial(make_release, tmp_path)


@pytest.fixture
def frame_of():
    """Frames of noise, the same for the same seed."""

    def make(seed=0, height=40, width=48):
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)

"""Turning originals and accepted candidates into releases."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version

from torch import nn

from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.spec.workload import Workload
from gemel_ray.weights.models import store_models
from gemel_ray.weights.store import Store

_PACKAGES = ("torch", "torchvision", "numpy", "ray", "gemel-ray")


def provenance(seed: int, note: str, trial: Mapping[str, str | int | float | bool | None] | None = None) -> Provenance:
    """How and with what a release is being made, now and here."""
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join(sys.argv),
        seed=seed,
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        note=note,
        trial=dict(trial or {}),
    )


def publish_originals(store: Store, workload: Workload, models: Mapping[str, nn.Module], *, seed: int) -> Manifest:
    """The release that every search starts from and every revert ends at: nothing shared."""
    states = {query: model.state_dict() for query, model in models.items()}
    weights, blobs = store_models(store, states, MergeConfiguration(), {})
    held = sum(info.tensor_bytes for info in blobs.values())
    return store.publish(
        Manifest(
            release=1,
            workload_name=workload.name,
            workload_hash=workload.content_hash(),
            queries={q.name: ReleasedQuery(query=q, weights=weights[q.name]) for q in workload.queries},
            blobs=blobs,
            bytes_before=sum(sum(blobs[sha].tensor_bytes for sha in paths.values()) for paths in weights.values()),
            bytes_after=held,
            provenance=provenance(seed, "originals"),
        )
    )


def publish_candidate(
    store: Store, parent: Manifest, candidate: Candidate, outcome: Outcome, *, search: str = ""
) -> Manifest:
    """An accepted candidate on top of its parent. Queries that it did not touch stay as they are."""
    queries, configuration = dict(parent.queries), candidate.configuration
    for query, weights in outcome.weights.items():
        changed = {"weights": weights, "slices": configuration.slices_of(query), "accuracy": outcome.accuracies[query]}
        queries[query] = queries[query].model_copy(update=changed)
    used = {sha for released in queries.values() for sha in released.weights.values()}
    blobs = {sha: info for sha, info in (parent.blobs | outcome.blobs).items() if sha in used}
    trial: dict[str, str | int | float | bool | None] = {
        "search": search,
        "model_set": candidate.model_set,
        "candidate": candidate.number,
        "label": candidate.label,
        "steps": outcome.steps,
        "seconds": outcome.seconds,
    }
    return store.publish(
        Manifest(
            release=1,
            parent=parent.release,
            workload_name=parent.workload_name,
            workload_hash=parent.workload_hash,
            queries=queries,
            merge_configuration=parent.merge_configuration.joined(configuration.shared),
            blobs=blobs,
            bytes_before=parent.bytes_before,
            bytes_after=sum(info.tensor_bytes for info in blobs.values()),
            provenance=provenance(candidate.seed, candidate.label, trial),
        )
    )

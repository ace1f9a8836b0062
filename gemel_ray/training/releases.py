"""Turning originals and accepted candidates into releases."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version

from torch import nn

from gemel_ray.spec.errors import StoreError
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.spec.uris import shown_command
from gemel_ray.spec.workload import Query, Workload
from gemel_ray.weights.maintenance import originals_of
from gemel_ray.weights.models import store_models
from gemel_ray.weights.store import Store

_PACKAGES = ("torch", "torchvision", "numpy", "ray", "gemel-ray")


def provenance(seed: int, note: str, trial: Mapping[str, str | int | float | bool | None] | None = None) -> Provenance:
    """How and with what a release is being made, now and here."""
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shown_command(sys.argv),
        seed=seed,
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        note=note,
        trial=dict(trial or {}),
    )


def publish_originals(store: Store, workload: Workload, models: Mapping[str, nn.Module], *, seed: int) -> Manifest:
    """The release that every search starts from and every revert ends at: nothing shared.

    HEAD stays where it is of the same originals: boxes that follow it may not have room for these.
    """
    states = {query: model.state_dict() for query, model in models.items()}
    weights, blobs = store_models(store, states, MergeConfiguration(), {})
    held = sum(info.tensor_bytes for info in blobs.values())
    made = Manifest(
        release=1,
        workload_name=workload.name,
        workload_hash=workload.content_hash(),
        queries={q.name: ReleasedQuery(query=q, weights=weights[q.name]) for q in workload.queries},
        blobs=blobs,
        bytes_before=sum(sum(blobs[sha].tensor_bytes for sha in paths.values()) for paths in weights.values()),
        bytes_after=held,
        provenance=provenance(seed, "originals"),
    )
    return store.publish(made, head=head_like(store, made, originals=made) is None)


def publish_candidate(
    store: Store,
    parent: Manifest,
    candidate: Candidate,
    outcome: Outcome,
    *,
    search: str = "",
    root: Manifest | None = None,
) -> Manifest:
    """An accepted candidate on top of its parent. Queries that it did not touch stay as they are.

    HEAD stays where it serves the originals that `root` comes of, and as accurately, in no more memory; without a root,
    as where HEAD has drifted, it moves.
    """
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
    made = Manifest(
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
    head = head_like(store, root, originals=originals_of(store, root)) if root else None
    return store.publish(made, head=head is None or not _is_as_good(head, made, candidate.gate_margin))


def head_like(store: Store, asked: Manifest, *, originals: Manifest) -> Manifest | None:
    """The release to serve, if it is made of these very originals and is asked the same questions."""
    try:
        head = store.manifest()
        before = originals_of(store, head)
    except StoreError:
        # None yet, or one that cannot be served.
        return None
    return head if _originals(before) == _originals(originals) and _questions(head) == _questions(asked) else None


def _originals(root: Manifest) -> dict[str, Mapping[str, str]]:
    return {name: released.weights for name, released in root.queries.items()}


def _questions(release: Manifest) -> dict[str, Query]:
    """What is asked, whatever its target, and wherever the original's weights lay."""
    return {
        name: each.query.model_copy(
            update={"accuracy_target": 1.0, "model": each.query.model.model_copy(update={"weights": None})}
        )
        for name, each in release.queries.items()
    }


def _is_as_good(head: Manifest, other: Manifest, gate_margin: float) -> bool:
    """Whether no query's target is lower, the gate would still pass every one, and no more memory is taken."""
    targets = {name: released.query.accuracy_target for name, released in other.queries.items()}
    are_met = all(
        released.query.accuracy_target >= targets[name]
        and (released.accuracy is None or released.accuracy.passes(gate_margin))
        for name, released in head.queries.items()
    )
    return are_met and head.bytes_after <= other.bytes_after

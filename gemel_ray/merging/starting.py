"""Where a search starts: at a workload's originals, or at what an earlier release has merged already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from gemel_ray.spec.errors import InputError, ModelError
from gemel_ray.spec.release import Manifest, ReleasedQuery
from gemel_ray.spec.workload import Query, Workload
from gemel_ray.training.releases import head_like, provenance
from gemel_ray.vision.checkpoints import fit_state, load_weights
from gemel_ray.vision.models import build_model, training_device
from gemel_ray.vision.tasks import check_takes_frames
from gemel_ray.weights.maintenance import originals_of, reverted
from gemel_ray.weights.models import load_state, reader_of
from gemel_ray.weights.store import Store


def originals_of_workload(workload: Workload, *, allow_factories: bool) -> dict[str, nn.Module]:
    """The models that every answer is held against, with the weights that the workload names.

    Raises ModelError for models that cannot be built, or that lack weights which fit them.
    """
    models = _built(workload, allow_factories)
    for query in workload.queries:
        if query.model.weights is None:
            raise ModelError(
                f"query {query.name!r}: its model has no 'weights'; name a file, or train one with `gemel originals`"
            )
        load_weights(models[query.name], query.model)
    return {name: model.to(training_device()) for name, model in models.items()}


def originals_in_store(
    workload: Workload, store: Store, release: int, *, allow_factories: bool
) -> dict[str, nn.Module]:
    """The same, from the store that has them: the originals that a release was made from.

    Raises InputError for a release of other queries, MissingReleaseError, and ModelError for one of other models.
    """
    manifest = store.manifest(release)
    names = {query.name for query in workload.queries}
    if names != manifest.queries.keys():
        raise InputError(
            f"--from-release {release} has queries {sorted(manifest.queries)}, the workload {sorted(names)}; both must "
            "have the same"
        )
    root, models = originals_of(store, manifest), _built(workload, allow_factories)
    reader = reader_of(store, root.queries.values())
    for name, model in models.items():
        released, source = root.queries[name], f"release {root.release}, query {name!r}"
        fit_state(model, load_state(reader, released.weights, released.slices), source=source)
    return {name: model.to(training_device()) for name, model in models.items()}


def begun_from(store: Store, release: int, workload: Workload, apart: Sequence[str], gate_margin: float) -> Manifest:
    """Publish what a search goes on from: like another release, asked what the workload asks, and with the queries
    `apart` sharing nothing.

    A release of its own even where nothing differs, so that the search knows which others come of it. It is HEAD where
    HEAD is asked other things, unless something was taken apart, which takes more memory. Raises InputError for a query
    that the release lacks, and for one that shares and was not accepted at so high a target.
    """
    manifest = store.manifest(release)
    root = originals_of(store, manifest)
    merged = [name for name in apart if _is_merged(manifest, root, name)]
    start = reverted(manifest, root, merged) if merged else manifest.model_copy(update={"parent": release})
    queries = {query.name: _asked(start, query, gate_margin) for query in workload.queries}
    note = f"what a search goes on from: release {release}{', apart: ' * bool(merged)}{', '.join(merged)}"
    changed = {
        "queries": queries,
        "workload_name": workload.name,
        "workload_hash": workload.content_hash(),
        "provenance": provenance(start.provenance.seed, note, {"base": release, "apart": ",".join(merged)}),
    }
    asked = start.model_copy(update=changed)
    return store.publish(asked, head=not merged and head_like(store, asked, originals=root) is None)


def _asked(start: Manifest, query: Query, gate_margin: float) -> ReleasedQuery:
    """A query's weights as released, with the workload's question: what was accepted must meet the target asked now."""
    released = start.queries[query.name]
    if released.accuracy is None:
        return released.model_copy(update={"query": query})
    before = released.accuracy
    accuracy = before.model_copy(update={"target": query.accuracy_target})
    is_more = query.judged_by != before.judged_by or query.accuracy_target > before.target
    if is_more and not (query.judged_by == before.judged_by and accuracy.passes(gate_margin)):
        raise InputError(
            f"query {query.name!r}: release {start.parent} met {before.target:g} by {before.judged_by} with "
            f"{before.held[0]:.3f}, surely {before.held[1]:.3f}, and the workload asks for {query.accuracy_target:g} "
            f"by {query.judged_by}; let it share nothing at first (--apart {query.name}), ask what it was accepted "
            "for, or leave out --from-release"
        )
    return released.model_copy(update={"query": query, "accuracy": accuracy})


def check_unchanged(
    models: Mapping[str, nn.Module], workload: Workload, store: Store, root: int, *, allow_factories: bool
) -> None:
    """Raise InputError where a search that is taken up again began with other originals: what it has accepted since
    was held against those."""
    for name, begun_with in originals_in_store(workload, store, root, allow_factories=allow_factories).items():
        now = models[name].state_dict()
        if any(not torch.equal(tensor, now[key]) for key, tensor in begun_with.state_dict().items()):
            raise InputError(
                f"query {name!r}: its weights {workload.query(name).model.weights} are not those that this search "
                f"began with (release {root}); put those back, or leave out --resume to search anew"
            )


def _is_merged(manifest: Manifest, root: Manifest, query: str) -> bool:
    known = query in manifest.queries and query in root.queries
    # `reverted` says what is wrong with the others.
    return not known or manifest.queries[query].weights != root.queries[query].weights


def _built(workload: Workload, allow_factories: bool) -> dict[str, nn.Module]:
    models = {query.name: build_model(query.model, allow_factories=allow_factories) for query in workload.queries}
    # Before feeds are read and originals are asked, which takes minutes.
    for query in workload.queries:
        check_takes_frames(models[query.name], query)
    return models

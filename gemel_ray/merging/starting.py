"""Where a search starts: at a workload's originals, or at what an earlier release has merged already."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gemel_ray.spec.errors import InputError, ModelError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Workload
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


def taken_apart(store: Store, release: int, queries: Sequence[str]) -> Manifest:
    """A release to start from, like another one, in which these queries share nothing; not for serving.

    Raises InputError for a query that it lacks.
    """
    manifest = store.manifest(release)
    root = originals_of(store, manifest)
    merged = [name for name in queries if _is_merged(manifest, root, name)]
    return store.publish(reverted(manifest, root, merged), head=False) if merged else manifest


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

"""Whether the release that is to be served answers what the workload file asks: the release's own values count."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gemel_ray.spec.errors import StoreError, nearest
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Query, Workload
from gemel_ray.weights.store import open_store

# What a query asks of the service, beside its models.
_FIELDS = ("fps", "slo_ms", "score_threshold")


def check_asked(workload: Workload, store_uri: str, release: int | None, report: Callable[[str], None]) -> None:
    """Tell where the workload asks other things than the release answers, unless the store is away.

    A box starts all the same: its file may run ahead of its store, and its cameras wait.
    """
    try:
        store = open_store(store_uri)
        manifest = store.manifest(store.wanted() if release is None else release)
    except StoreError:
        return
    for line in _differences(workload, manifest):
        report(line)


def _differences(workload: Workload, manifest: Manifest) -> Iterator[str]:
    for query in workload.queries:
        released = manifest.queries.get(query.name)
        if released is None:
            yield (
                f"query {query.name!r} is not in release {manifest.release} and is not served "
                f"({nearest(query.name, manifest.queries)}); search this workload, or name the release's own"
            )
        elif differing := _differing(query, released.query):
            yield (
                f"query {query.name!r}: release {manifest.release} is served as it was published, with {differing}; "
                f"publish what the workload says: gemel search WORKLOAD --store STORE --from-release {manifest.release}"
            )


def _differing(asked: Query, served: Query) -> str:
    found = [(name, getattr(asked, name), getattr(served, name)) for name in _FIELDS]
    return ", ".join(f"{name} {is_:g} (workload: {wanted:g})" for name, wanted, is_ in found if wanted != is_)

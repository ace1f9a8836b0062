"""What differs between two releases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.release import Manifest, ReleasedQuery


@dataclass(frozen=True, slots=True)
class QueryDiff:
    """One query in two releases. Agreement is None where the query runs its original, or is absent.

    `changed` names what differs: weights, and keys of the query such as fps.
    """

    query: str
    state: Literal["added", "removed", "changed", "unchanged"]
    changed: tuple[str, ...]
    agreement_before: float | None
    agreement_after: float | None
    lower_bound_after: float | None
    target_after: float | None


@dataclass(frozen=True, slots=True)
class SharingDiff:
    """Layers that share one copy in one of two releases and take several in the other."""

    signature: str
    layer_bytes: int
    members: tuple[str, ...]
    copies_before: int
    copies_after: int


@dataclass(frozen=True, slots=True)
class ReleaseDiff:
    """What differs between two releases; `fetch_*` is what an edge box that holds the first lacks of the second."""

    before: int
    after: int
    queries: tuple[QueryDiff, ...]
    share_now: tuple[SharingDiff, ...]
    share_no_longer: tuple[SharingDiff, ...]
    bytes_before: int
    bytes_after: int
    fetch_blobs: int
    fetch_file_bytes: int
    kept_blobs: int


def diff_releases(before: Manifest, after: Manifest) -> ReleaseDiff:
    """Compare two releases: queries, sharing, and what an edge box fetches to go from one to the other."""
    names = dict.fromkeys([*before.queries, *after.queries])
    fetched = [info for sha, info in after.blobs.items() if sha not in before.blobs]
    old, new = before.merge_configuration, after.merge_configuration
    return ReleaseDiff(
        before=before.release,
        after=after.release,
        queries=tuple(_diff_query(name, before.queries.get(name), after.queries.get(name)) for name in names),
        share_now=tuple(_sharing(layer, _copies(old, layer), 1) for layer in new.shared if _copies(old, layer) > 1),
        share_no_longer=tuple(
            _sharing(layer, 1, _copies(new, layer)) for layer in old.shared if _copies(new, layer) > 1
        ),
        bytes_before=before.bytes_after,
        bytes_after=after.bytes_after,
        fetch_blobs=len(fetched),
        fetch_file_bytes=sum(info.file_bytes for info in fetched),
        kept_blobs=len(after.blobs) - len(fetched),
    )


def _diff_query(name: str, before: ReleasedQuery | None, after: ReleasedQuery | None) -> QueryDiff:
    changed = _changed(before, after) if before and after else ()
    old, new = before and before.accuracy, after and after.accuracy
    return QueryDiff(
        query=name,
        state="added" if before is None else "removed" if after is None else "changed" if changed else "unchanged",
        changed=changed,
        agreement_before=old.agreement if old else None,
        agreement_after=new.agreement if new else None,
        lower_bound_after=new.lower_bound if new else None,
        target_after=new.target if new else None,
    )


def _changed(before: ReleasedQuery, after: ReleasedQuery) -> tuple[str, ...]:
    old, new = before.query.model_dump(), after.query.model_dump()
    weights = () if before.weights == after.weights else ("weights",)
    return weights + tuple(key for key in old if old[key] != new[key])


def _copies(configuration: MergeConfiguration, layer: SharedLayer) -> int:
    """How many copies of its weights the members of a shared layer take under another configuration."""
    others = [frozenset(other.members) & frozenset(layer.members) for other in configuration.shared]
    shared = [members for members in others if members]
    return len(layer.members) - sum(len(members) - 1 for members in shared)


def _sharing(layer: SharedLayer, copies_before: int, copies_after: int) -> SharingDiff:
    members = tuple(str(member) for member in layer.members)
    return SharingDiff(layer.signature, layer.layer_bytes, members, copies_before, copies_after)

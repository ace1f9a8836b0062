"""From one plan of a node to another, query by query: the plans in between.

While a query's new model is tried, it stands in the plan as a query of its own beside the old one, so that the
scheduler brings its weights in within the budget, as for any other query, and the old model goes on answering.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from gemel_ray.spec.plan import EdgePlan, PlannedQuery
from gemel_ray.spec.release import Manifest, ReleasedQuery

_LONG_MS = 2_000.0


def labelled(plan: EdgePlan, release: int) -> EdgePlan:
    """The plan with every query's model said to be that release's."""
    return replace(plan, queries=tuple(replace(query, release=release) for query in plan.queries))


def trial_name(query: str, release: int) -> str:
    """What a query's new model is called while it is tried; no query of a workload can have such a name."""
    return f"{query}@{release}"


def mixed_plan(old: EdgePlan, new: EdgePlan, switched: Collection[str], tried: str | None = None) -> EdgePlan:
    """The plan in which some queries are `switched` to their new model, and the one `tried` has both.

    Queries that `new` lacks keep their turns to the end; those that `old` lacks get theirs with their switch.
    """
    former = {query.name: query for query in old.queries}
    turns = tuple(_turns(former, new, switched, tried))
    leaving = tuple(query for query in old.queries if query.name not in new.names)
    used = {weight for query in (*turns, *leaving) for weight in query.weights}
    weight_bytes, load_ms = {**old.weight_bytes, **new.weight_bytes}, {**old.load_ms, **new.load_ms}
    return replace(
        new,
        queries=turns + leaving,
        weight_bytes={weight: weight_bytes[weight] for weight in used},
        load_ms={weight: load_ms[weight] for weight in used},
    )


def with_all_memory(plan: EdgePlan, name: str, release: int) -> EdgePlan:
    """The plan with one more turn, which has the whole budget to itself and needs no weights."""
    # However long it takes, nothing else is to be started meanwhile.
    turn = PlannedQuery(name, (), 1, {1: _LONG_MS}, {1: plan.budget_bytes}, release=release)
    return replace(plan, queries=(*plan.queries, turn))


def _turns(
    former: Mapping[str, PlannedQuery], new: EdgePlan, switched: Collection[str], tried: str | None
) -> Iterator[PlannedQuery]:
    for query in new.queries:
        if query.name in switched:
            yield query
        elif query.name in former:
            yield former[query.name]
        if query.name == tried:
            yield replace(query, name=trial_name(query.name, query.release))


def changed_queries(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """Queries of `new` whose model, weights or threshold are not those of `old`, in the order of `new`."""
    return tuple(name for name, found in new.queries.items() if not _is_same(old, new, name))


def _is_same(old: Manifest, new: Manifest, name: str) -> bool:
    if name not in old.queries:
        return False
    return _answering(old.queries[name]) == _answering(new.queries[name])


def _answering(found: ReleasedQuery) -> tuple[object, ...]:
    """All that decides what a query answers to a frame: a model is built with it, once."""
    return found.weights, found.slices, found.query.model, found.query.score_threshold


def compared_queries(old: Manifest, new: Manifest) -> frozenset[str]:
    """Queries whose new answers are held against their old ones: where a release moves on.

    Who goes back does so because the old answers are not to be trusted, so they are no measure then; nor are those of
    another threshold, which are meant to be other ones.
    """
    if new.release < old.release:
        return frozenset()
    reverted = {name.strip() for name in str(new.provenance.trial.get("reverted") or "").split(",")}
    both = old.queries.keys() & new.queries.keys() - reverted
    return frozenset(name for name in both if _threshold(old, name) == _threshold(new, name))


def _threshold(release: Manifest, name: str) -> float:
    return release.queries[name].query.score_threshold


def restricted(manifest: Manifest, names: Collection[str]) -> Manifest:
    """The release with some of its queries alone: what one node of several serves."""
    queries = {name: found for name, found in manifest.queries.items() if name in names}
    used = {blob for found in queries.values() for blob in found.weights.values()}
    blobs = {blob: info for blob, info in manifest.blobs.items() if blob in used}
    held_bytes = sum(info.tensor_bytes for info in blobs.values())
    return manifest.model_copy(update={"queries": queries, "blobs": blobs, "bytes_after": held_bytes})

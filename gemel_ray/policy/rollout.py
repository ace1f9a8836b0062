"""What to change next in a fleet: one node, one step, decided from what there is and what is wanted.

Level-triggered: whoever calls this again with the same facts gets the same answer, and a caller that was restarted
knows all that it needs as soon as it has asked the nodes. Knows no clock; ages come with the facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node's engine says of itself."""

    memory_bytes: int
    # What it serves, sorted; None and nothing where it is idle.
    release: int | None = None
    queries: tuple[str, ...] = ()
    # Why it is changing at the moment; None when it is not.
    busy: str | None = None
    # The release it served before this one.
    former: int | None = None
    # Releases that failed a check here, and why.
    refused: Mapping[int, str] = field(default_factory=dict)
    # Of the last change: seconds since it ended, frames that failed since (of queries that failed less before: see
    # canary.py), bytes that came from the store, how long it took.
    settled_s: float = 0.0
    failed_frames: int = 0
    fetched_bytes: int = 0
    took_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Absent:
    """A node whose engine does not answer. `is_gone`: its machine has left the cluster, as far as Ray knows."""

    reason: str
    is_gone: bool
    since_s: float


Nodes = Mapping[str, NodeReport | Absent]


@dataclass(frozen=True, slots=True)
class Rules:
    """How patient a fleet is. `canary_s`: how long the first node serves a new release before the others follow;
    `grace_s`: how long an engine may stay silent before its queries move."""

    canary_s: float = 5.0
    grace_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Change:
    """Let a node serve these queries of a release; `refuse` says why the one it serves now is not to come back."""

    node: str
    release: int
    queries: tuple[str, ...]
    why: str
    refuse: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The next change, if any. `waiting` says what has to happen before there can be another, `blocked` why a release
    is not rolled out any further."""

    change: Change | None = None
    waiting: str | None = None
    blocked: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether all is as it is wanted, as far as it can be."""
        return self.change is None and self.waiting is None


def present(nodes: Nodes) -> dict[str, NodeReport]:
    """The nodes that answer."""
    return {name: found for name, found in nodes.items() if isinstance(found, NodeReport)}


def usable(nodes: Nodes, rules: Rules) -> tuple[str, ...]:
    """Nodes that queries may be placed on: those that answer, and those that may be back in a moment."""
    return tuple(name for name, found in nodes.items() if not _is_lost(found, rules))


def _is_lost(found: NodeReport | Absent, rules: Rules) -> bool:
    return isinstance(found, Absent) and (found.is_gone or found.since_s > rules.grace_s)


def homes_now(nodes: Nodes) -> dict[str, str]:
    """The node that answers each query now; of two, the one named first."""
    homes: dict[str, str] = {}
    for name, report in present(nodes).items():
        for query in report.queries:
            homes.setdefault(query, name)
    return homes


def decide(nodes: Nodes, target: int, homes: Mapping[str, str], rules: Rules) -> Decision:
    """The next step towards serving `target`, every query on its node of `homes`.

    Queries that nobody answers come first, then the new release on its first node; the others follow once that one has
    served it for `canary_s` without a failed frame. A query leaves a node only when its new one answers it.
    """
    here = present(nodes)
    if busy := [f"{name}: {report.busy}" for name, report in here.items() if report.busy]:
        return Decision(waiting="; ".join(busy))
    if (failed := _failed_canary(here, target, rules)) is not None:
        return Decision(failed, blocked=f"release {target} on {failed.node}: {failed.refuse}")
    refused = {name: report.refused[target] for name, report in here.items() if target in report.refused}
    blocked = next((f"release {target} on {name}: {reason}" for name, reason in refused.items()), None)
    changes = sorted(_changes(here, target, homes, rules, is_blocked=bool(refused)), key=lambda found: found[0])
    if changes:
        return Decision(changes[0][1], blocked=blocked)
    return Decision(waiting=None if refused else _awaited(here, target, rules), blocked=blocked)


def _failed_canary(here: Mapping[str, NodeReport], target: int, rules: Rules) -> Change | None:
    """Back to the release before, where frames fail while a new one has yet to stand the test."""
    others = [report for report in here.values() if report.queries and report.release != target]
    for name, report in here.items():
        is_tested = report.release == target and bool(others or report.settled_s < rules.canary_s)
        if is_tested and report.failed_frames and report.former is not None and report.former != target:
            reason = f"{report.failed_frames} frames failed since it is served"
            return Change(name, report.former, report.queries, f"release {target} fails here", reason)
    return None


def _changes(
    here: Mapping[str, NodeReport], target: int, homes: Mapping[str, str], rules: Rules, *, is_blocked: bool
) -> Iterator[tuple[int, Change]]:
    answered = {query for report in here.values() for query in report.queries}
    for place, (name, report) in enumerate(here.items()):
        release = _release_for(name, here, target, rules, is_blocked=is_blocked)
        queries = _queries_for(name, report, here, homes)
        if release is None or (queries == report.queries and (release == report.release or not queries)):
            continue
        homeless = [query for query in queries if query not in answered]
        change = Change(name, release, queries, _why(report, release, queries, homeless))
        yield (0 if homeless else 1 if release != report.release else 2) * len(here) + place, change


def _queries_for(
    name: str, report: NodeReport, here: Mapping[str, NodeReport], homes: Mapping[str, str]
) -> tuple[str, ...]:
    """Those that belong here, and those that nobody else answers yet although they do not."""
    wanted = [query for query, home in homes.items() if home == name]
    leaving = [
        query
        for query in report.queries
        if query not in wanted and homes.get(query) in here and query not in here[homes[query]].queries
    ]
    return tuple(sorted([*wanted, *leaving]))


def _release_for(
    name: str, here: Mapping[str, NodeReport], target: int, rules: Rules, *, is_blocked: bool
) -> int | None:
    """The target where it may go now; else what is served here, or by most where nothing is."""
    report = here[name]
    if not is_blocked and _may_have_target(name, here, target, rules):
        return target
    if report.release is not None and report.queries:
        return report.release
    served = Counter(found.release for found in here.values() if found.queries and found.release not in (None, target))
    return served.most_common(1)[0][0] if served else (None if is_blocked else target)


def _may_have_target(name: str, here: Mapping[str, NodeReport], target: int, rules: Rules) -> bool:
    """Whether this is the first node to get it, or the first one has stood the test."""
    serving = {other: report for other, report in here.items() if report.queries}
    if not serving or all(report.release == target for report in serving.values()):
        return True
    first = [report for report in serving.values() if report.release == target]
    if first:
        return any(report.settled_s >= rules.canary_s and not report.failed_frames for report in first)
    return name == next(iter(serving))


def _awaited(here: Mapping[str, NodeReport], target: int, rules: Rules) -> str | None:
    behind = [name for name, report in here.items() if report.queries and report.release != target]
    if not behind:
        return None
    first = next((name for name, report in here.items() if report.queries and report.release == target), None)
    return f"{first} serves release {target} for {rules.canary_s:g} s before {', '.join(behind)} may"


def _why(report: NodeReport, release: int, queries: Sequence[str], homeless: Collection[str]) -> str:
    parts = []
    if homeless:
        parts.append(f"nobody answers {', '.join(homeless)}")
    if moved := [query for query in queries if query not in report.queries and query not in homeless]:
        parts.append(f"{', '.join(moved)} better here")
    if gone := [query for query in report.queries if query not in queries]:
        parts.append(f"{', '.join(gone)} answered elsewhere")
    if report.release not in (None, release) and report.queries:
        parts.append(f"release {release} instead of {report.release}")
    return "; ".join(parts)

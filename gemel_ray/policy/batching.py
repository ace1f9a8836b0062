"""Batch sizes: the worst query's goodput first, then the mean, under SLO, frame rate and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gemel_ray.policy.duty_cycle import Round, TurnCost

# Predictions the search may ask for; counted rather than timed, so that every machine chooses the same sizes.
_MOST_TRIED = 300


@dataclass(frozen=True, slots=True)
class Demand:
    """What one query asks for, and what each batch size that it may run costs, memory included."""

    fps: float
    slo_ms: float
    costs: Mapping[int, TurnCost]


def expected_goodput(batch_size: int, run_ms: float, duty_cycle_ms: float, *, fps: float, slo_ms: float) -> float:
    """Fraction of a query's frames answered within the SLO, when its turn comes once in every duty cycle.

    Frames come at a steady rate and a turn takes the newest: at the turn's start they are spread evenly over the
    ages from 0 to batch_size / fps. One is in time when it is younger than slo_ms - run_ms and has come since the
    turn before, so of the duty cycle's frames min(batch_size / fps, slo_ms - run_ms, duty_cycle_ms) / duty_cycle_ms
    are answered in time. Own derivation; queries with nothing pending are skipped, so this is a low estimate.
    """
    if duty_cycle_ms <= 0:
        return 1.0
    in_time_ms = min(batch_size * 1000 / fps, slo_ms - run_ms, duty_cycle_ms)
    return max(in_time_ms, 0.0) / duty_cycle_ms


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a choice of batch sizes is expected to bring."""

    sizes: Mapping[str, int]
    cycle_ms: float
    goodput: Mapping[str, float]

    @property
    def score(self) -> tuple[float, float]:
        """The worst query's goodput, then the mean."""
        return min(self.goodput.values()), sum(self.goodput.values()) / len(self.goodput)


def expect(
    sizes: Mapping[str, int],
    planned: Round,
    demands: Mapping[str, Demand],
    *,
    budget_bytes: int,
    overlap: bool,
) -> Outlook:
    """Every query's expected goodput at the duty cycle that these batch sizes make."""
    costs = {query: demands[query].costs[size] for query, size in sizes.items()}
    cycle_ms = planned.duty_cycle_ms(costs, budget_bytes=budget_bytes, overlap=overlap)
    goodput = {
        query: expected_goodput(
            size, costs[query].run_ms, cycle_ms, fps=demands[query].fps, slo_ms=demands[query].slo_ms
        )
        for query, size in sizes.items()
    }
    return Outlook(sizes, cycle_ms, goodput)


def choose_batch_sizes(
    planned: Round,
    demands: Mapping[str, Demand],
    *,
    budget_bytes: int,
    overlap: bool,
) -> Outlook:
    """A batch size for every query, out of those in its demand, and what to expect of them. Deterministic.

    Climbs from the smallest ones: the worst of the queries that are held back by their batch size gets the next
    larger one, on and on, since one step may make things worse until the others have followed. The best seen on the
    way is then improved one query at a time.
    """

    def outlook(sizes: Mapping[str, int]) -> Outlook:
        return expect(sizes, planned, demands, budget_bytes=budget_bytes, overlap=overlap)

    best, tried = _climb(outlook, planned.order, demands)
    improved = True
    while improved:
        improved = False
        for query in sorted(planned.order, key=best.goodput.__getitem__):
            for size in _next_sizes(demands[query], best.sizes[query]):
                tried += 1
                if tried > _MOST_TRIED:
                    return best
                found = outlook({**best.sizes, query: size})
                if found.score > best.score:
                    best, improved = found, True
    return best


def _climb(
    outlook: Callable[[Mapping[str, int]], Outlook], order: Sequence[str], demands: Mapping[str, Demand]
) -> tuple[Outlook, int]:
    """The best outlook on the way up, and how many were looked at."""
    best = here = outlook({query: min(demands[query].costs) for query in order})
    for tried in range(1, _MOST_TRIED):
        held_back = [query for query in order if _is_held_back(demands[query], here.sizes[query], here.cycle_ms)]
        if not held_back:
            return best, tried
        worst = min(held_back, key=here.goodput.__getitem__)
        here = outlook({**here.sizes, worst: _next_sizes(demands[worst], here.sizes[worst])[0]})
        best = max(best, here, key=lambda found: found.score)
    return best, _MOST_TRIED


def _is_held_back(demand: Demand, size: int, cycle_ms: float) -> bool:
    """Whether more frames than a turn takes could be answered in time, and a larger batch size is allowed."""
    in_time_ms = min(demand.slo_ms - demand.costs[size].run_ms, cycle_ms)
    return size < max(demand.costs) and size * 1000 / demand.fps < in_time_ms


def _next_sizes(demand: Demand, size: int) -> list[int]:
    """The next larger batch size, then the next smaller, where there are such."""
    larger = [other for other in sorted(demand.costs) if other > size][:1]
    return larger + [other for other in sorted(demand.costs) if other < size][-1:]

"""GEMEL's own search, to be compared with: one layer group after the other, memory-forward (section 5.3).

Completed where the published code is not: the lightest group is tried too, and the search ends with a result. A group
that fails is tried again with half of its members while that saves more than the next group would.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemel_ray.policy.additions import Addition, memory_forward
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.layers import LayerGroup
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.strict import Strict
from gemel_ray.spec.trials import Candidate, Recipe, Start

# The authors' own 1e-5 gets nowhere within hours on a processor (merging.md); this is the best of its kind there.
PAPER_RATE = 0.01


class GreedyState(Strict):
    """What a greedy search knows; plain values. `recipe`, `start` and `learning_rate` as in Candidate."""

    settings: SearchSettings
    recipe: Recipe = "paper"
    start: Start = "member"
    learning_rate: float = PAPER_RATE
    seed: int
    release: int
    accepted: MergeConfiguration = MergeConfiguration()
    # Groups still to be tried, largest saving first; the first one is being tried.
    waiting: Addition
    trials: int = 0


def begin_greedy(
    groups: Sequence[LayerGroup],
    *,
    release: int,
    settings: SearchSettings,
    seed: int = 0,
    recipe: Recipe = "paper",
    start: Start = "member",
    learning_rate: float = PAPER_RATE,
) -> GreedyState:
    """A search over groups, starting from a release of the originals."""
    return GreedyState(
        settings=settings,
        seed=seed,
        release=release,
        waiting=memory_forward(MergeConfiguration.of(groups).shared),
        recipe=recipe,
        start=start,
        learning_rate=learning_rate,
    )


def greedy_candidate(state: GreedyState) -> Candidate | None:
    """What to try next; None when nothing is left, or the budget is spent."""
    if not state.waiting or state.trials >= state.settings.max_trials:
        return None
    group = state.waiting[0]
    return Candidate(
        number=state.trials,
        label=f"greedy {group.members[0].layer} of {len(group.members)} models",
        configuration=state.accepted.joined((group,)),
        max_steps=state.settings.max_steps,
        start_release=state.release,
        start=state.start,
        objective=state.settings.objective,
        recipe=state.recipe,
        learning_rate=state.learning_rate,
        gate_margin=state.settings.gate_margin,
        seed=state.seed + state.trials,
    )


def advance_greedy(state: GreedyState, candidate: Candidate, *, passed: bool, release: int) -> GreedyState:
    """The state after a trial; `release` publishes the candidate where it passed."""
    group, rest = state.waiting[0], state.waiting[1:]
    if not passed:
        half = group.among(group.members[: len(group.members) // 2])
        # What halving keeps is worth a trial while it saves more than the next group.
        rest = (half, *rest) if half and (not rest or half.saved_bytes >= rest[0].saved_bytes) else rest
    return state.model_copy(
        update={
            "accepted": candidate.configuration if passed else state.accepted,
            "release": release if passed else state.release,
            "waiting": rest,
            "trials": state.trials + 1,
        }
    )

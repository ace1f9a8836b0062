"""Ways to run the same queries on one node, ours among them, to be compared in one harness.

The one thing they all have in common is the scheduler: turns in a fixed order, late frames dropped, newest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gemel_ray.policy.planning import plan_queries
from gemel_ray.policy.sharing import (
    Holding,
    Models,
    Sharing,
    as_released,
    bit_identical_layers,
    by_blob,
    common_stems,
    merged_layers,
    private_layers,
    whole_models,
)
from gemel_ray.spec.errors import InputError, nearest
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.profile import DeviceProfile


@dataclass(frozen=True, slots=True)
class Policy:
    """What is shared, in which order queries take turns, what is evicted, and whether loads hide behind inferences."""

    about: str
    sharing: Sharing
    eviction: str = "furthest_next_use"
    overlap: bool = True
    # The order of fewest bytes moved, or the given one.
    plans_order: bool = True
    max_batch: int = 8
    # As in EdgePlan.
    work_conserving: bool = True
    # Memory for everything, whatever the node has.
    has_all_memory: bool = False
    # Other policies that a short simulation may prefer to this one; see edge.choosing.choose_plan.
    alternatives: tuple[str, ...] = ()

    @property
    def serves_merged(self) -> bool:
        """Whether the answers are those of merged models. Stems count as originals: nobody retrained them here."""
        return self.sharing in (merged_layers, as_released)


POLICIES: Mapping[str, Policy] = {
    "ours_merged": Policy(
        "merged, planned order and batches, furthest next use evicted, work-conserving; or what simulates better",
        merged_layers, alternatives=("ours_released", "time_space_merged"),
    ),
    "ours_released": Policy(
        "merged, in the weight sets that a release stores: what the engine does; or time/space sharing on these",
        as_released, alternatives=("time_space_merged",),
    ),
    "ours": Policy(
        "as ours_merged, without any sharing", private_layers, alternatives=("time_space",),
    ),
    "time_space_merged": Policy(
        "merged, given order, most recently used evicted, loads overlap: GEMEL's edge",
        merged_layers, "most_recently_used", plans_order=False, work_conserving=False,
    ),
    "time_space": Policy(
        "whole models in given order, most recently used evicted, overlap: GEMEL's variant of Nexus (section 3.2)",
        whole_models, "most_recently_used", plans_order=False, work_conserving=False,
    ),
    "model_lru": Policy(
        "whole models, least recently used evicted, one frame at a time: serve.multiplexed and its like",
        whole_models, "least_recently_used",
        overlap=False, plans_order=False, max_batch=1, work_conserving=False,
    ),
    "dedup": Policy("as ours, sharing only what was bit-identical before any merge", bit_identical_layers),
    "stem": Policy("as ours, sharing only a common prefix of layers: Mainstream", common_stems),
    "everything_resident": Policy(
        "memory for everything, nothing shared: the upper bound", whole_models, has_all_memory=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several plans for the same queries; see edge.choosing."""

    plan: EdgePlan
    # To be followed unless another plan is clearly better, since predictions may be wrong.
    is_baseline: bool = False


def find_policy(name: str) -> Policy:
    """The policy of that name; InputError names the nearest one."""
    if name not in POLICIES:
        raise InputError(f"no policy {name!r}; {nearest(name, POLICIES)}")
    return POLICIES[name]


def candidate_plans(
    policy: Policy, models: Models, profile: DeviceProfile, *, budget_bytes: int
) -> tuple[Candidate, ...]:
    """The policy's variants, and its alternatives' with planned and with larger batches. See plan_policy.

    What a release stores as one weight set comes and goes as one, whoever plans: alternatives run on the same sets.
    """
    candidates = [Candidate(plan) for plan in variants(policy, models, profile, budget_bytes=budget_bytes)]
    for name in () if fits_whole(candidates[0].plan) else policy.alternatives:
        other = find_policy(name)
        if policy.sharing in (as_released, by_blob):
            other = replace(other, sharing=policy.sharing)
        found = _with_larger(other, models, profile, budget_bytes=budget_bytes)
        candidates += [Candidate(plan, is_baseline=not other.work_conserving) for plan in found]
    return tuple(candidates)


def variants(policy: Policy, models: Models, profile: DeviceProfile, *, budget_bytes: int) -> tuple[EdgePlan, ...]:
    """The policy's own plan, and the same with larger batches; of a work-conserving policy also in strict round robin,
    and with the most recently used weights going first, which keeps a fixed part of them for good. Where everything
    fits, batch sizes are all there is to choose."""
    planned = _with_larger(policy, models, profile, budget_bytes=budget_bytes)
    if not policy.work_conserving or fits_whole(planned[0]):
        return planned
    strict = replace(planned[0], work_conserving=False)
    return (*planned, strict, replace(strict, eviction="most_recently_used"))


def _with_larger(policy: Policy, models: Models, profile: DeviceProfile, *, budget_bytes: int) -> tuple[EdgePlan, ...]:
    """The policy's own plan, and one with the largest batches that fit: which is better depends on what predictions
    leave out, so all policies that batch get both, the baselines too."""
    own = plan_policy(policy, models, profile, budget_bytes=budget_bytes)
    order = [query.name for query in own.queries]
    larger = plan_policy(policy, models, profile, budget_bytes=budget_bytes, order=order, largest_batches=True)
    return (own, larger) if larger != own else (own,)


def plan_policy(
    policy: Policy,
    models: Models,
    profile: DeviceProfile,
    *,
    budget_bytes: int,
    order: Sequence[str] | None = None,
    largest_batches: bool = False,
) -> EdgePlan:
    """The order is the policy's unless given. Raises OverBudgetError when one query alone does not fit, ServingError
    when the profile lacks a query."""
    holding = policy.sharing(models)
    plan = plan_queries(
        holding.queries,
        holding.weight_bytes,
        profile,
        budget_bytes=_ample_bytes(holding, profile) if policy.has_all_memory else budget_bytes,
        max_batch=policy.max_batch,
        overlap=policy.overlap,
        order=order if policy.plans_order else tuple(models),
        largest_batches=largest_batches,
    )
    return replace(plan, eviction=policy.eviction, work_conserving=policy.work_conserving)


def fits_whole(plan: EdgePlan) -> bool:
    """Whether all weights fit beside the largest workspace, so that each is loaded once."""
    workspace_bytes = max(max(query.workspace_bytes.values()) for query in plan.queries)
    return sum(plan.weight_bytes.values()) + workspace_bytes <= plan.budget_bytes


def _ample_bytes(holding: Holding, profile: DeviceProfile) -> int:
    return holding.total_bytes + max(
        max(profile.queries[name].workspace_bytes.values()) for name in holding.queries if name in profile.queries
    )

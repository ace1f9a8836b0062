"""A release's plans on one node as an engine may follow them: in the release's own weight sets, in order of use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from gemel_ray.policy.baselines import Candidate, Policy, candidate_plans, find_policy
from gemel_ray.policy.planning import in_order_of_use
from gemel_ray.policy.sharing import by_blob, models_of
from gemel_ray.policy.transition import labelled
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest

_AS_DECLARED: Mapping[str, float] = MappingProxyType({})


def on_weight_sets(policy: str) -> Policy:
    """The policy as an engine runs it. Raises InputError for one that is not there."""
    return replace(find_policy(policy), sharing=by_blob, has_all_memory=False)


def released_plans(
    manifest: Manifest,
    profile: DeviceProfile,
    policy: str,
    *,
    budget_bytes: int,
    fps: Mapping[str, float] = _AS_DECLARED,
) -> tuple[Candidate, ...]:
    """All plans of a policy of policy.baselines, and of its alternatives, for all of the release's queries.

    `fps` are the rates at which frames come, by query; the workload's where it says nothing. Raises OverBudgetError
    when one query alone does not fit, ServingError when the profile lacks a query.
    """
    models = {name: replace(model, fps=fps.get(name, model.fps)) for name, model in models_of(manifest).items()}
    candidates = candidate_plans(on_weight_sets(policy), models, profile, budget_bytes=budget_bytes)
    return tuple(replace(each, plan=_of_release(each.plan, manifest, profile)) for each in candidates)


def _of_release(plan: EdgePlan, manifest: Manifest, profile: DeviceProfile) -> EdgePlan:
    return labelled(in_order_of_use(plan, manifest, profile), manifest.release)

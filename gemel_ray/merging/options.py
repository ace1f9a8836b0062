"""How a search is told to go, and the states that it begins with. Knows nothing of Ray."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from gemel_ray.policy.grouping import group_layers, group_repeats, group_slices_in_sets, independent_sets
from gemel_ray.policy.search import begin
from gemel_ray.policy.search_state import SearchSettings, SearchState
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.layers import LayerGroup, ModelInventory
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Workload
from gemel_ray.training.data import QueryData
from gemel_ray.training.joint import BATCH_SIZE
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.similarity import relatives


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search. `parallel` trials run at once, each with `cpus` and `gpus`."""

    parallel: int = 2
    cpus: float = 1
    gpus: float = 0
    seed: int = 0
    # GEMEL's own bounds: sharing across models only, by the exact signature.
    paper: bool = False
    # Whether smaller layers may be slices of larger ones.
    slices: bool = True
    settings: SearchSettings = field(default_factory=SearchSettings)
    # Start no further trial after so long; the search can be taken up again.
    minutes: float = math.inf
    # Retrain for no more passes over the longest feed's training frames, all trials together.
    epochs: float = math.inf
    allow_factories: bool = False
    resume: bool = False
    # Go on from what this release has merged already, with its originals from the store instead of the workload's
    # weights; the queries named in `apart` share nothing at first.
    from_release: int | None = None
    apart: tuple[str, ...] = ()
    # Where to keep what Tune writes of every trial (TensorBoard, JSON lines, CSV); nowhere without it.
    logs: Path | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a value that no search could go by."""
        for name, least in {"parallel": 1, "gpus": 0, "seed": 0, "minutes": 0, "epochs": 0}.items():
            if not getattr(self, name) >= least:
                raise InputError(f"--{name} {getattr(self, name)} is too little; give {least} or more")
        if self.apart and self.from_release is None:
            taken = ",".join(self.apart)
            raise InputError(f"--apart {taken!r} takes queries out of a release; name it with --from-release")
        if not 0 < self.cpus < math.inf:
            raise InputError(f"--cpus {self.cpus}: a trial needs some; give 1, or a fraction such as 0.5")


def choices(options: SearchOptions) -> dict[str, str | int | float | bool | None]:
    """What decides what a search comes to, by the option's name."""
    settings = options.settings
    return {
        "trials": settings.max_trials,
        "steps": settings.max_steps,
        "epochs": None if math.isinf(options.epochs) else options.epochs,
        "gate-margin": settings.gate_margin,
        "objective": settings.objective,
        "start": settings.start,
        "delta-rank": settings.delta_rank,
        "views": settings.views,
        "paper": options.paper,
        "slices": options.slices,
        "seed": options.seed,
        "from-release": options.from_release,
        "apart": ",".join(options.apart) or None,
    }


def bounded(options: SearchOptions, frames: Mapping[str, QueryData]) -> SearchOptions:
    """The same options with `epochs` as a number of steps, which is what a search counts."""
    if math.isinf(options.epochs):
        return options
    longest = max(len(part.splits["train"].images) for part in frames.values())
    most_steps = math.ceil(options.epochs * longest / BATCH_SIZE)
    return replace(options, settings=options.settings.model_copy(update={"most_steps": most_steps}))


def initial_states(
    workload: Workload,
    models: Mapping[str, nn.Module],
    start: Manifest,
    options: SearchOptions,
    left_out: Collection[str] = (),
) -> list[SearchState]:
    """One state for each set of models that share nothing with the others, and what of it `start` shares already.

    Nothing is tried with the queries that are left out. What shares already goes on with those it shares with: its
    weights move with theirs.
    """
    unshared = {*left_out}.difference(start.merge_configuration.queries)
    analysis = analyze(workload, allow_factories=options.allow_factories)
    inventories = [each for each in analysis.inventories if each.query not in unshared]
    groups = group_layers(inventories)
    beyond = () if options.paper else group_repeats(inventories)
    alike = relatives(models, groups)
    widest = _slices_beside(start.merge_configuration, inventories) if options.slices and not options.paper else ()
    sets = independent_sets((*groups, *beyond))
    settings = _of_one_set(options, max(len(sets), 1))
    return [
        begin(
            _within(groups, queries),
            relatives=_within(alike, queries),
            beyond=_within(beyond, queries),
            widest=_within(widest, queries),
            accepted=start.merge_configuration.within(queries),
            release=start.release,
            settings=settings,
            seed=options.seed,
            name=min(queries),
        )
        for queries in sets
    ]


def _slices_beside(accepted: MergeConfiguration, inventories: Sequence[ModelInventory]) -> list[LayerGroup]:
    """Only such as can be shared on top of what is: among other models other layers may have fitted into each other."""
    return [group for group in group_slices_in_sets(inventories) if accepted.can_take(group)]


def _of_one_set(options: SearchOptions, sets: int) -> SearchSettings:
    """Budgets are divided evenly among independent sets."""
    settings = options.settings
    narrowed: dict[str, int] = {"max_trials": max(settings.max_trials // sets, 1)}
    if settings.most_steps is not None:
        narrowed["most_steps"] = settings.most_steps // sets
    if options.paper:
        narrowed["delta_rank"] = 0
    return settings.model_copy(update=narrowed)


def _within(groups: Sequence[LayerGroup], queries: frozenset[str]) -> list[LayerGroup]:
    return [group for group in groups if queries.issuperset(group.queries)]

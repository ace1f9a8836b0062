"""The merge search on Ray Tune: a thin searcher and a thin trainable around policy and trial."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ray import tune
from ray.tune.search import Searcher
from torch import nn

from gemel_ray.merging.progress import Progress, superseded
from gemel_ray.merging.session import ray_session
from gemel_ray.policy.grouping import group_repeats, independent_sets
from gemel_ray.policy.search import SearchSettings, SearchState, begin
from gemel_ray.spec.errors import SearchError
from gemel_ray.spec.layers import LayerGroup
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.spec.units import format_bytes
from gemel_ray.spec.workload import Workload
from gemel_ray.training.data import QueryData, read_workload_data, with_teacher
from gemel_ray.training.joint import Validation
from gemel_ray.training.releases import publish_originals
from gemel_ray.training.trial import Trial
from gemel_ray.vision.checkpoints import load_weights
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.models import build_model, training_device
from gemel_ray.vision.similarity import relatives
from gemel_ray.weights.files import absolute_uri
from gemel_ray.weights.store import Store, open_store

Report = Callable[[str], None]
# Of one set of models, with room to spare; Tune wants a bound.
_MOST_PROBES = 100


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search. `parallel` trials run at once, each with `cpus` and `gpus`."""

    parallel: int = 2
    cpus: float = 1
    gpus: float = 0
    seed: int = 0
    # GEMEL's own bounds: sharing across models only, by the exact signature.
    paper: bool = False
    settings: SearchSettings = field(default_factory=SearchSettings)
    # Start no further trial after so long; the search can be taken up again.
    minutes: float = math.inf
    allow_factories: bool = False
    resume: bool = False


def search(
    workload: Workload,
    store_uri: str,
    options: SearchOptions,
    report: Report = lambda line: None,
    frames: Mapping[str, QueryData] | None = None,
) -> Manifest:
    """Search merge configurations of a workload; every improvement is published at once. Returns the best release.

    Ray is started, or the cluster that RAY_ADDRESS names is joined, once everything given has been read. `frames`
    spares reading the feeds. Raises InputError for what is wrong with what was given, and SearchError when there is
    nothing to resume.
    """
    store = open_store(store_uri, create=True)
    data, progress = _prepare(workload, store, options, report, frames)
    if not progress.is_finished:
        with ray_session():
            _run_trials(progress, data, absolute_uri(store_uri), options, report)
    return progress.latest()


def search_name(workload: Workload) -> str:
    """The name under which a store keeps the state of a workload's search."""
    return f"{workload.name}-{workload.content_hash()[:12]}"


def _prepare(
    workload: Workload,
    store: Store,
    options: SearchOptions,
    report: Report,
    frames: Mapping[str, QueryData] | None,
) -> tuple[dict[str, QueryData], Progress]:
    models = {q.name: build_model(q.model, allow_factories=options.allow_factories) for q in workload.queries}
    for query in workload.queries:
        load_weights(models[query.name], query.model)
        models[query.name].to(training_device())
    report(f"reading {len(workload.queries)} feeds, and what the originals answer to them")
    frames = frames or read_workload_data(workload)
    data = {name: with_teacher(part, models[name]) for name, part in frames.items()}
    name = search_name(workload)
    if options.resume:
        progress = Progress.resume(store, name)
        if progress is None:
            raise SearchError(
                f"{store.locate()}: there is no search of {workload.name!r} to resume; leave out --resume"
            )
        return data, progress
    originals = publish_originals(store, workload, models, seed=options.seed)
    states = initial_states(workload, models, originals, options)
    progress = Progress(store, name, states, root=originals.release)
    progress.save()
    return data, progress


def initial_states(
    workload: Workload, models: Mapping[str, nn.Module], originals: Manifest, options: SearchOptions
) -> list[SearchState]:
    """One state for each set of models that share nothing with the others."""
    analysis = analyze(workload, allow_factories=options.allow_factories)
    beyond = () if options.paper else group_repeats(analysis.inventories)
    alike = relatives(models, analysis.groups)
    sets = independent_sets((*analysis.groups, *beyond))
    trials = max(options.settings.max_trials // max(len(sets), 1), 1)
    settings = options.settings.model_copy(update={"max_trials": trials})
    return [
        begin(
            _within(analysis.groups, queries),
            relatives=_within(alike, queries),
            beyond=_within(beyond, queries),
            release=originals.release,
            settings=settings,
            seed=options.seed,
            name=min(queries),
        )
        for queries in sets
    ]


def _within(groups: Sequence[LayerGroup], queries: frozenset[str]) -> list[LayerGroup]:
    return [group for group in groups if queries.issuperset(group.queries)]


def _run_trials(
    progress: Progress, data: Mapping[str, QueryData], store_uri: str, options: SearchOptions, report: Report
) -> None:
    searcher = MergeSearcher(progress, options, report)
    trainable = tune.with_parameters(
        MergeTrial, data=dict(data), store_uri=store_uri, allow_factories=options.allow_factories
    )
    with tempfile.TemporaryDirectory(prefix="gemel-search-") as folder:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": options.cpus, "gpu": options.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                # Never reached: the searcher itself says when it has finished.
                num_samples=(options.settings.max_trials + _MOST_PROBES) * max(len(progress.states), 1),
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=folder,
                verbose=0,
                stop=StopSuperseded(searcher),
                # A killed worker is replaced and its trial begins again.
                failure_config=tune.FailureConfig(max_failures=1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    if not progress.is_finished:
        _tell_unfinished(progress, searcher, report)


def _tell_unfinished(progress: Progress, searcher: MergeSearcher, report: Report) -> None:
    release = progress.latest().release
    if not searcher.is_out_of_time():
        # Tune takes Ctrl-C for itself and returns as if all were well.
        raise SearchError(
            f"the search was interrupted; release {release} stands. The same with --resume goes on from it"
        )
    report(f"time is up, release {release} stands; the same with --resume goes on from it")


class MergeSearcher(Searcher):
    """Maps Tune's suggest and complete onto the search in progress."""

    def __init__(self, progress: Progress, options: SearchOptions, report: Report) -> None:
        super().__init__(metric="passed", mode="max")
        self._progress, self._parallel, self._report = progress, options.parallel, report
        self._live: dict[str, Candidate] = {}
        self._began_s = time.monotonic()
        self._until_s = self._began_s + 60 * options.minutes

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next candidate; None while the round's last trials run."""
        if self._progress.is_finished or self.is_out_of_time():
            return self._wait_or_end()
        if len(self._live) >= self._parallel:
            return None
        candidate = self._progress.next_candidate()
        if candidate is None:
            return None
        self._live[trial_id] = candidate
        self._report(f"trial {self._name(candidate)} begins: {candidate.label}")
        return {"candidate": candidate.model_dump_json()}

    def _wait_or_end(self) -> dict[str, Any] | None:
        return None if self._live else Searcher.FINISHED  # type: ignore[return-value] # Tune's own marker

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Say how far a trial is."""
        name = self._name(self._live[trial_id])
        self._report(f"trial {name}: step {result['steps']}, worst agreement {result['worst_agreement']:.3f}")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the outcome; a trial that died twice counts as failed."""
        candidate = self._live.pop(trial_id)
        if result and "outcome" in result and not error:
            outcome = Outcome.model_validate_json(result["outcome"])
        elif self._progress.is_superseded(candidate):
            outcome = superseded(candidate)
        else:
            outcome = Outcome(candidate=candidate.number, passed=False, reason="failed: its process died twice")
        self._progress.take(candidate, outcome)
        self._report(self._line(candidate, outcome))

    def is_out_of_time(self) -> bool:
        """Whether no further trial may start."""
        return time.monotonic() > self._until_s

    def is_superseded(self, trial_id: str) -> bool:
        """Whether a running trial can change nothing any more."""
        return trial_id in self._live and self._progress.is_superseded(self._live[trial_id])

    def _name(self, candidate: Candidate) -> str:
        several = len(self._progress.states) > 1
        return f"{candidate.number} of {candidate.model_set}'s set" if several else str(candidate.number)

    def _line(self, candidate: Candidate, outcome: Outcome) -> str:
        """What became of a trial, and where the search is."""
        latest = self._progress.latest()
        saved, before = latest.bytes_before - latest.bytes_after, latest.bytes_before
        bound = sum(layer.saved_bytes for state in self._progress.states for layer in state.groups)
        return (
            f"trial {self._name(candidate)}: {outcome.reason} after {outcome.steps} steps, {outcome.seconds:.0f} s | "
            f"release {latest.release} saves {format_bytes(saved)} ({100 * saved / before:.1f} % of all; across models "
            f"at most {100 * bound / before:.1f} %) | {len(self._live)} trials running, "
            f"{time.monotonic() - self._began_s:.0f} s"
        )

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store holds the search's own state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from the store."""


class StopSuperseded(tune.Stopper):
    """Ends trials whose outcome can change nothing any more, at their next validation."""

    def __init__(self, searcher: MergeSearcher) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to stop this trial."""
        return self._searcher.is_superseded(trial_id)

    def stop_all(self) -> bool:
        """Never all of them."""
        return False


class MergeTrial(tune.Trainable):
    """One candidate at a time; one step of Tune is one validation."""

    def setup(  # type: ignore[override] # with_parameters adds the rest
        self, config: dict[str, Any], data: Mapping[str, QueryData], store_uri: str, allow_factories: bool
    ) -> None:
        """Start on the candidate in `config`."""
        torch.set_num_threads(1)
        self._data, self._store, self._allow_factories = data, open_store(store_uri), allow_factories
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        candidate = Candidate.model_validate_json(config["candidate"])
        self._trial = Trial(candidate, self._data, self._store, allow_factories=self._allow_factories)
        self._validations: Iterator[Validation] = self._trial.run()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate in the same process."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train until the next validation; with the last one comes the outcome."""
        validation = next(self._validations)
        worst = min(score.estimate for score in validation.scores.values())
        report: dict[str, Any] = {"steps": validation.step, "worst_agreement": worst, "passed": 0, "done": False}
        if validation.verdict is not None:
            outcome = self._trial.outcome(validation)
            report |= {"outcome": outcome.model_dump_json(), "passed": int(outcome.passed), "done": True}
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials are short, an interrupted one begins again."""

    def load_checkpoint(self, checkpoint: dict[Any, Any] | None) -> None:
        """Nothing."""

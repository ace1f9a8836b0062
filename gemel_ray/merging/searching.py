"""The merge search on Ray Tune: a thin searcher and a thin trainable around policy and trial."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from ray import tune
from ray.tune.search import Searcher

from gemel_ray.merging.progress import Progress
from gemel_ray.policy.grouping import Rule
from gemel_ray.policy.search import SearchBudget, begin
from gemel_ray.spec.errors import SearchError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.spec.workload import Workload
from gemel_ray.training.data import QueryData, read_query_data, with_teacher
from gemel_ray.training.joint import Validation
from gemel_ray.training.releases import publish_originals
from gemel_ray.training.trial import Trial
from gemel_ray.vision.checkpoints import load_weights
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.models import build_model
from gemel_ray.weights.files import absolute_uri
from gemel_ray.weights.store import Store, open_store

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search. `parallel` trials run at once, each with `cpus` and `gpus`."""

    parallel: int = 2
    cpus: float = 1
    gpus: float = 0
    seed: int = 0
    rule: Rule = "exact"
    budget: SearchBudget = field(default_factory=SearchBudget)
    allow_factories: bool = False
    resume: bool = False


def search(workload: Workload, store_uri: str, options: SearchOptions, report: Report = lambda line: None) -> Manifest:
    """Search merge configurations of a workload; every improvement is published at once. Returns the best release.

    Needs a Ray that is initialised already. Raises SearchError when there is nothing to resume, or when an unfinished
    search of the same workload would be overwritten.
    """
    store = open_store(store_uri, create=True)
    data, progress = _prepare(workload, store, options)
    if not progress.is_finished:
        _run_trials(progress, data, absolute_uri(store_uri), options, report)
    return store.manifest(progress.state.release)


def _prepare(workload: Workload, store: Store, options: SearchOptions) -> tuple[dict[str, QueryData], Progress]:
    models = {q.name: build_model(q.model, allow_factories=options.allow_factories) for q in workload.queries}
    for query in workload.queries:
        load_weights(models[query.name], query.model)
    data = {
        query.name: with_teacher(read_query_data(query, workload.feeds[query.feed]), models[query.name])
        for query in workload.queries
    }
    name = f"{workload.name}-{workload.content_hash()[:12]}"
    if options.resume:
        progress = Progress.resume(store, name)
        if progress is None:
            raise SearchError(
                f"{store.locate()}: there is no search of {workload.name!r} to resume; leave out --resume"
            )
        return data, progress
    groups = analyze(workload, rule=options.rule, allow_factories=options.allow_factories).groups
    originals = publish_originals(store, workload, models, seed=options.seed)
    state = begin(groups, release=originals.release, budget=options.budget, seed=options.seed)
    progress = Progress(store, name, state)
    progress.save()
    return data, progress


def _run_trials(
    progress: Progress, data: Mapping[str, QueryData], store_uri: str, options: SearchOptions, report: Report
) -> None:
    trainable = tune.with_parameters(
        MergeTrial, data=dict(data), store_uri=store_uri, allow_factories=options.allow_factories
    )
    with tempfile.TemporaryDirectory(prefix="gemel-search-") as folder:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": options.cpus, "gpu": options.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=MergeSearcher(progress, options.parallel, report),
                num_samples=options.budget.max_trials,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=folder,
                verbose=0,
                # A killed worker is replaced and its trial begins again.
                failure_config=tune.FailureConfig(max_failures=1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


class MergeSearcher(Searcher):
    """Maps Tune's suggest and complete onto the search in progress."""

    def __init__(self, progress: Progress, parallel: int, report: Report) -> None:
        super().__init__(metric="passed", mode="max")
        self._progress, self._parallel, self._report = progress, parallel, report
        self._live: dict[str, Candidate] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next candidate; None while the round's last trials run."""
        if self._progress.is_finished:
            return None if self._live else Searcher.FINISHED  # type: ignore[return-value] # Tune's own marker
        if len(self._live) >= self._parallel:
            return None
        candidate = self._progress.next_candidate()
        if candidate is None:
            return None
        self._live[trial_id] = candidate
        self._report(f"trial {candidate.number}: {candidate.label}")
        return {"candidate": candidate.model_dump_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the outcome; a trial that died twice counts as failed."""
        candidate = self._live.pop(trial_id)
        if error or not result or "outcome" not in result:
            outcome = Outcome(candidate=candidate.number, passed=False, reason="failed: its process died twice")
        else:
            outcome = Outcome.model_validate_json(result["outcome"])
        self._report(f"trial {candidate.number}: {outcome.reason} after {outcome.steps} steps, {outcome.seconds:.0f} s")
        self._progress.take(outcome)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store holds the search's own state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from the store."""


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

"""The merge search: what it needs is read, and Ray Tune runs its trials."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from torch import nn

from gemel_ray.merging.gates import check_gates
from gemel_ray.merging.options import SearchOptions, bounded, choices, initial_states
from gemel_ray.merging.progress import Progress
from gemel_ray.merging.searcher import MergeSearcher, StopSuperseded, TellBegun
from gemel_ray.merging.session import check_room, ray_session
from gemel_ray.merging.starting import begun_from, check_unchanged, originals_in_store, originals_of_workload
from gemel_ray.merging.trainable import MergeTrial
from gemel_ray.spec.errors import GemelError, InputError, SearchError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Workload
from gemel_ray.training.data import QueryData, check_labels_for, read_workload_data, with_teacher
from gemel_ray.training.releases import publish_originals
from gemel_ray.weights.files import absolute_uri
from gemel_ray.weights.searches import claimed
from gemel_ray.weights.store import Store, open_store

Report = Callable[[str], None]
# Of one set of models, with room to spare; Tune wants a bound.
_MOST_PROBES = 100


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
    _check_logs(options.logs)
    store = open_store(store_uri, create=True)
    # What is begun anew is read before anything is written; what is resumed, once nobody else goes on with it.
    read = None if options.resume else _read(workload, store, options, None, report, frames)
    with claimed(store, search_name(workload)):
        progress = _resumed(workload, store, options, report) if options.resume else None
        if progress is not None and progress.is_finished:
            return _concluded(progress, report)
        models, data, left_out = read or _read(workload, store, options, progress, report, frames)
        if progress is None:
            progress = _begun(workload, store, models, bounded(options, data), left_out)
        if not progress.is_finished:
            with ray_session() as is_own:
                check_room(options.cpus, options.gpus, is_own=is_own, report=report)
                _run_trials(progress, data, absolute_uri(store_uri), options, report)
    return _concluded(progress, report)


def _concluded(progress: Progress, report: Report) -> Manifest:
    """The release that a search came to, and what there is to say of it."""
    report(progress.prediction().told())
    if nearest := progress.nearest():
        report(nearest)
    found, head = progress.latest(), progress.store.head()
    if head != found.release:
        report(
            f"HEAD is release {head}, not {found.release}; `gemel revert STORE --to {found.release}` serves this one"
        )
    return found


def _check_logs(folder: Path | None) -> None:
    """Before anything is published."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--logs {folder}: is no folder to write to ({error.strerror}); give another") from error


def search_name(workload: Workload) -> str:
    """The name under which a store keeps the state of a workload's search."""
    return f"{workload.name}-{workload.content_hash()[:12]}"


def _read(
    workload: Workload,
    store: Store,
    options: SearchOptions,
    resumed: Progress | None,
    report: Report,
    frames: Mapping[str, QueryData] | None,
) -> tuple[dict[str, nn.Module], dict[str, QueryData], list[str]]:
    """The originals, frames with what they answer, and the queries that no gate could let pass."""
    models = _originals(workload, store, options, resumed)
    report(f"reading {len(workload.queries)} feeds, and what the originals answer to them")
    frames = frames or read_workload_data(workload)
    check_labels_for(options.settings.objective, frames)
    data = {name: with_teacher(part, models[name]) for name, part in frames.items()}
    return models, data, check_gates(data, options.settings.gate_margin, report)


def _resumed(workload: Workload, store: Store, options: SearchOptions, report: Report) -> Progress:
    progress = Progress.resume(store, search_name(workload))
    if progress is None:
        raise SearchError(f"{store.locate()}: there is no search of {workload.name!r} to resume; leave out --resume")
    given = choices(options)
    for name in [name for name, value in progress.options.items() if value != given.get(name)]:
        report(f"--resume goes on as it was begun: --{name} {progress.options[name]}, not {given.get(name)}")
    if progress.is_finished:
        report("this search had ended: nothing is left to try; without --resume it begins anew")
    return progress


def _begun(
    workload: Workload, store: Store, models: Mapping[str, nn.Module], options: SearchOptions, left_out: Sequence[str]
) -> Progress:
    if options.from_release is None:
        start = publish_originals(store, workload, models, seed=options.seed)
    else:
        margin = options.settings.gate_margin
        start = begun_from(store, options.from_release, workload, options.apart, margin)
    states = initial_states(workload, models, start, options, left_out)
    progress = Progress(store, search_name(workload), states, root=start.release, options=choices(options))
    progress.save()
    return progress


def _originals(
    workload: Workload, store: Store, options: SearchOptions, resumed: Progress | None
) -> dict[str, nn.Module]:
    """The workload's own; the store's, where the search goes on from a release, or was begun so."""
    root, trusting = options.from_release if resumed is None else resumed.root, options.allow_factories
    is_first = root is None or (resumed is not None and store.manifest(root).parent is None)
    if root is not None and not is_first:
        return originals_in_store(workload, store, root, allow_factories=trusting)
    models = originals_of_workload(workload, allow_factories=trusting)
    if root is not None:
        check_unchanged(models, workload, store, root, allow_factories=trusting)
    return models


def _run_trials(
    progress: Progress, data: Mapping[str, QueryData], store_uri: str, options: SearchOptions, report: Report
) -> None:
    searcher = MergeSearcher(progress, options.parallel, options.minutes, report)
    trainable = tune.with_parameters(
        MergeTrial, data=dict(data), store_uri=store_uri, allow_factories=options.allow_factories
    )
    with _log_folder(options.logs) as folder:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": options.cpus, "gpu": options.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                # Never reached: the searcher itself says when it has finished.
                num_samples=sum(state.settings.max_trials + _MOST_PROBES for state in progress.states),
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=folder,
                verbose=0,
                # The session switches Tune's own off: without a folder to keep them in they are work for nothing.
                callbacks=[TellBegun(searcher), *_loggers(options)],
                stop=StopSuperseded(searcher),
                # A killed worker is replaced and its trial begins again.
                failure_config=tune.FailureConfig(max_failures=1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    if searcher.problem or not progress.is_finished:
        _tell_unfinished(progress, searcher, report)


def _loggers(options: SearchOptions) -> list[tune.Callback]:
    return [JsonLoggerCallback(), CSVLoggerCallback(), TBXLoggerCallback()] if options.logs else []


@contextmanager
def _log_folder(wanted: Path | None) -> Iterator[str]:
    """The folder that is wanted, or one for as long as the search takes."""
    if wanted is not None:
        yield str(wanted.absolute())
        return
    with tempfile.TemporaryDirectory(prefix="gemel-search-") as folder:
        yield folder


def _tell_unfinished(progress: Progress, searcher: MergeSearcher, report: Report) -> None:
    if searcher.problem:
        raise SearchError(f"{searcher.problem}. {_standing(progress)}; mend that, and the same with --resume goes on")
    release = progress.latest().release
    if not searcher.is_out_of_time():
        # Tune takes Ctrl-C for itself and returns as if all were well.
        raise SearchError(
            f"the search was interrupted; release {release} stands. The same with --resume goes on from it"
        )
    report(f"time is up, release {release} stands; the same with --resume goes on from it")


def _standing(progress: Progress) -> str:
    """What is there to be served, as far as a store in trouble says."""
    try:
        return f"Release {progress.latest().release} stands"
    except GemelError:
        return "What was released stays"

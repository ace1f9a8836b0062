"""Benchmark: our merge search against GEMEL's own, on the same originals, frames, target and gate.

    gemel demo --video FOLDER && python jobs/bench_search.py gemel-demo --minutes 10

Both run here, one trial after the other on one thread, no Ray: what counts is what is saved after so much work. GEMEL's
search shares one group after the other, from one member's weights, with labels, SGD and a constant rate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import records
import torch
from torch import nn

from gemel_ray.merging.options import SearchOptions, initial_states
from gemel_ray.merging.progress import Progress, superseded
from gemel_ray.policy.greedy import advance_greedy, begin_greedy, greedy_candidate
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.spec.workload import Workload, load_workload
from gemel_ray.training.data import QueryData, read_workload_data, with_teacher
from gemel_ray.training.releases import publish_candidate, publish_originals
from gemel_ray.training.trial import Trial
from gemel_ray.vision.checkpoints import load_weights
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.models import build_model
from gemel_ray.weights.store import Store, open_store

Try = Callable[[Candidate, Callable[[], bool]], Outcome]


def trier(data: dict[str, QueryData], store: Store) -> Try:
    """Runs one candidate to its end, or until it is out of time or superseded."""

    def attempt(candidate: Candidate, is_over: Callable[[], bool]) -> Outcome:
        trial = Trial(candidate, data, store)
        for validation in trial.run():
            if validation.verdict is not None:
                return trial.outcome(validation)
            if is_over():
                break
        return superseded(candidate)

    return attempt


@dataclass(frozen=True)
class Setting:
    """What both searches start from."""

    workload: Workload
    models: dict[str, nn.Module]
    store: Store
    root: Manifest
    settings: SearchSettings
    attempt: Try
    is_over: Callable[[], bool]


def ours(setting: Setting, *, across_models_only: bool) -> Iterator[dict[str, Any]]:
    """Our search; after every trial what it was and what is saved."""
    options = SearchOptions(settings=setting.settings, paper=across_models_only)
    states = initial_states(setting.workload, setting.models, setting.root, options)
    progress = Progress(setting.store, "bench", states, root=setting.root.release)
    while not setting.is_over() and (candidate := progress.next_candidate()) is not None:
        outcome = setting.attempt(candidate, setting.is_over)
        progress.take(candidate, outcome)
        yield row(candidate, outcome, progress.latest())


def greedy(setting: Setting) -> Iterator[dict[str, Any]]:
    """GEMEL's search."""
    latest = setting.root
    groups = analyze(setting.workload).groups
    state = begin_greedy(groups, release=latest.release, settings=setting.settings)
    while not setting.is_over() and (candidate := greedy_candidate(state)) is not None:
        outcome = setting.attempt(candidate, setting.is_over)
        if outcome.passed:
            latest = publish_candidate(setting.store, latest, candidate, outcome)
        state = advance_greedy(state, candidate, passed=outcome.passed, release=latest.release)
        yield row(candidate, outcome, latest)


def row(candidate: Candidate, outcome: Outcome, latest: Manifest) -> dict[str, Any]:
    return {
        "label": candidate.label,
        "reason": outcome.reason,
        "steps": outcome.steps,
        "saved_fraction": 1 - latest.bytes_after / latest.bytes_before,
        "worst_gate": min((query.accuracy.agreement for query in latest.queries.values() if query.accuracy), default=1),
    }


def bench(options: argparse.Namespace) -> dict[str, Any]:
    workload = load_workload(options.folder / "workload.yaml")
    models = {query.name: build_model(query.model) for query in workload.queries}
    for query in workload.queries:
        load_weights(models[query.name], query.model)
    data = {name: with_teacher(part, models[name]) for name, part in read_workload_data(workload).items()}
    analysis = analyze(workload)
    bound = analysis.shareable_bytes / analysis.total_bytes
    print(f"sharing across models saves at most {100 * bound:.1f} % of all bytes")
    found = {}
    for method in options.methods:
        with tempfile.TemporaryDirectory(prefix="gemel-bench-") as folder:
            found[method] = run_method(method, workload, models, data, folder, options)
    return {"workload": workload.name, "cross_model_bound_fraction": bound, "methods": found}


def run_method(
    method: str,
    workload: Workload,
    models: dict[str, nn.Module],
    data: dict[str, QueryData],
    folder: str,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    store = open_store(folder, create=True)
    settings = SearchSettings(
        max_trials=1000,
        max_steps=options.steps,
        gate_margin=options.gate_margin,
        objective="labels" if method == "gemel" else "distillation",
    )
    root = publish_originals(store, workload, models, seed=options.seed)
    began_s, began_cpu_s = time.monotonic(), time.process_time()

    def is_over() -> bool:
        return time.process_time() - began_cpu_s > 60 * options.minutes

    setting = Setting(workload, models, store, root, settings, trier(data, store), is_over)
    rows = greedy(setting) if method == "gemel" else ours(setting, across_models_only=method == "ours-across")
    told = []
    for found in rows:
        told.append(found | {"seconds": time.monotonic() - began_s, "cpu_seconds": time.process_time() - began_cpu_s})
        print(line(method, told[-1]), flush=True)
    return told


def line(method: str, found: dict[str, Any]) -> str:
    return (
        f"{method:12} {found['cpu_seconds']:6.0f} CPU s  saved {100 * found['saved_fraction']:5.1f} %  "
        f"{found['label']}: {found['reason']} ({found['steps']} steps)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `gemel demo` left")
    parser.add_argument("--methods", nargs="+", default=["ours", "ours-across", "gemel"])
    parser.add_argument("--minutes", type=float, default=10, help="of processor time for each method")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--gate-margin", type=float, default=0.04)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = bench(options)
    record = records.heading("bench_search") | {"options": {k: str(v) for k, v in vars(options).items()}} | found
    path = records.write(record, f"{options.machine}-{found['workload']}")
    print(f"raw numbers: {path}")


if __name__ == "__main__":
    main()

"""Benchmark: all policies of policy.baselines on generated workloads of full-size torchvision models, simulated.

    python jobs/bench_edge.py --workloads 40 --seed 0
    python jobs/bench_edge.py --study                      # several hundred workloads, a table and plots
    ray job submit --working-dir . -- python jobs/bench_edge.py --study

Workloads are those of edge_workloads. Each one is simulated by itself: as a Ray task where this runs on a cluster, in
processes of this machine elsewhere. A plan is chosen on the frames of the first six seconds, as a box chooses anew once
it has seen when they come, and measured on those that come after. The record goes to jobs/results/, a table to stdout.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

import edge_results
import records
from edge_workloads import LEVELS, Case, case_of

from gemel_ray.edge.choosing import TRIED_MS, choose_plan
from gemel_ray.edge.simulation import measure, play
from gemel_ray.edge.traffic import periodic
from gemel_ray.policy.baselines import POLICIES, candidate_plans, find_policy
from gemel_ray.policy.estimates import RATES

STUDY_WORKLOADS = 300


def bench(number: int, case: Case, policies: Sequence[str], seconds: float) -> dict[str, Any]:
    """One workload under every policy at every memory level; rows as in edge_results.COLUMNS."""
    rows = []
    for level in LEVELS:
        for policy in policies:
            begun = time.process_time()
            found = simulated(case, policy, case.budget_bytes[level], seconds)
            rows.append([level, policy, *found, round(time.process_time() - begun, 2)])
    return {
        "number": number,
        "load": round(case.load, 3),
        "is_family": case.is_family,
        "queries": [list(asdict(each).values()) for each in case.asked],
        "rows": rows,
    }


def simulated(case: Case, policy: str, budget_bytes: int, seconds: float) -> list[float]:
    """The measured columns of one run."""
    models = case.stems if policy == "stem" else case.merged
    plans = candidate_plans(find_policy(policy), models, case.profile, budget_bytes=budget_bytes)
    frames = periodic(case.cameras, TRIED_MS + seconds * 1000)
    # Of these it looks at those before TRIED_MS alone.
    plan = choose_plan(plans, [frames])
    found = measure(policy, plan, play(plan, [frame for frame in frames if frame.arrived_ms >= TRIED_MS]))
    return [
        round(found.mean_goodput_fraction, 5),
        round(found.worst_goodput_fraction, 5),
        budget_bytes,
        found.weights_bytes,
        found.swap_bytes,
        round(found.busy_fraction, 4),
    ]


def on_processes(cases: Iterable[Case], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """In so many processes, as they are done. Spawned: what was imported here has started threads."""
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        running = [
            pool.submit(bench, number, case, options.policies, options.seconds) for number, case in enumerate(cases)
        ]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def on_ray(cases: Iterable[Case], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """As Ray tasks of one core each, as they are done."""
    import ray

    ray.init(ignore_reinit_error=True)
    task = ray.remote(num_cpus=1)(bench)
    running = [task.remote(number, case, options.policies, options.seconds) for number, case in enumerate(cases)]
    while running:
        done, running = ray.wait(running)
        yield from ray.get(done)


def is_on_a_cluster() -> bool:
    """Whether this runs as a Ray job, or a cluster is named."""
    return "RAY_ADDRESS" in os.environ or "RAY_JOB_ID" in os.environ


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="store_true", help=f"{STUDY_WORKLOADS} workloads unless told, and plots")
    parser.add_argument("--workloads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="of traffic that is simulated")
    parser.add_argument("--device", choices=sorted(RATES), default="t4")
    parser.add_argument("--merged-fraction", type=float, default=0.97, help="of the shareable bytes")
    parser.add_argument("--base", default="time_space", help="the policy that the others are compared with")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--on", choices=("ray", "processes"), default="ray" if is_on_a_cluster() else "processes")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after the workloads that are done by then")
    parser.add_argument("--name", default="", help="added to the record's file name")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    options.workloads = options.workloads or (STUDY_WORKLOADS if options.study else 40)
    return options


def main() -> None:
    """Simulate, print, record, draw."""
    options = parse()
    rng = random.Random(options.seed)
    cases = [case_of(rng, options.device, options.merged_fraction) for _ in range(options.workloads)]
    begun, workloads = time.perf_counter(), []
    for found in (on_ray if options.on == "ray" else on_processes)(cases, options):
        workloads.append(found)
        took_s = time.perf_counter() - begun
        print(f"{len(workloads)}/{len(cases)} after {took_s:.0f} s", file=sys.stderr, flush=True)
        if took_s > 60 * options.minutes:
            break
    record = records.heading("bench_edge") | {
        "options": {key: str(value) for key, value in vars(options).items() if key != "policies"},
        "policies": {name: POLICIES[name].about for name in options.policies},
        "took_s": round(time.perf_counter() - begun, 1),
        "workload_columns": edge_results.QUERY_COLUMNS,
        "columns": edge_results.COLUMNS,
        "workloads": sorted(workloads, key=lambda found: found["number"]),
    }
    print("\n".join(edge_results.table(record, options.base)))
    if not options.no_record:
        path = records.write(
            record, f"{'study_' if options.study else ''}{options.device}-simulated{options.name}", indent=None
        )
        print(f"raw numbers: {path}")
        if options.study:
            import plot_edge

            print("\n".join(f"drawn: {drawn}" for drawn in plot_edge.draw(record, path.with_suffix(""))))


if __name__ == "__main__":
    main()

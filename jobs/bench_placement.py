"""Placement of queries on nodes: how long it takes, how far from the best, and whether simulated nodes agree.

python jobs/bench_placement.py                  # all of it; needs scipy (pip install -e ".[dev]")
python jobs/bench_placement.py --exact 0        # without the exact solver

Fleets are generated: families of models, each with shared layers and a private remainder, on two kinds of nodes. `load`
is the share of all nodes' time that computing every frame takes; `memory` that of all merged weights, dealt out evenly.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import records

from gemel_ray.edge.playing import simulate
from gemel_ray.policy.placement import deal_in_turn, place
from gemel_ray.policy.sharing import ModelLayer, ServedModel
from gemel_ray.spec.placement import Placement
from gemel_ray.spec.profile import DeviceProfile, QueryProfile

# The generated fleets and the exact solver are the tests' own.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from placement_cases import Case, generated

LOADS, MEMORIES = (0.5, 0.7, 0.9, 1.0, 1.2), (0.4, 0.6, 0.8, 1.0, 1.3)
LARGE = ((0.7, 0.6), (0.95, 0.5), (1.2, 0.4))


def measured(placement: Placement) -> dict[str, Any]:
    return {
        "worst_goodput": placement.worst_goodput_fraction,
        "pressure": max(1.0, *(node.pressure for node in placement.nodes)),
        "weights_bytes": sum(node.weights_bytes for node in placement.nodes),
        "spared_bytes": placement.spared_bytes,
        "over_bytes": sum(node.over_bytes for node in placement.nodes),
    }


def timed(case: Case, **options: Any) -> tuple[Placement, dict[str, float]]:  # noqa: ANN401 - options of `place`
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    placement = place(*case.arguments, **options)
    return placement, {"took_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - began_cpu_s}


def large(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A whole fleet; then the same without its first node, and with it again."""
    rows = []
    for load, memory in LARGE:
        case = generated(
            random.Random(options.seed), options.queries, options.nodes, load=load, memory=memory, families=20
        )
        whole, took = timed(case)
        lost, took_lost = timed(case.without(case.nodes[0].name), current=whole.node_of)
        back, took_back = timed(case, current=lost.node_of)
        row = {"load": load, "memory": memory, "ours": measured(whole) | took}
        row["dealt"] = measured(deal_in_turn(*case.arguments))
        row["homeless"] = len(whole.nodes[0].queries)
        row["node_lost"] = measured(lost) | took_lost | {"moved": len(lost.moved)}
        row["node_back"] = measured(back) | took_back | {"moved": len(back.moved)}
        rows.append(row)
        print(large_line(row), flush=True)
    return rows


def large_line(row: dict[str, Any]) -> str:
    ours, dealt = row["ours"], row["dealt"]
    return (
        f"load {row['load']:.2f} memory {row['memory']:.1f}: {ours['took_s']:5.1f} s ({ours['cpu_s']:.1f} of CPU)  "
        f"worst goodput {ours['worst_goodput']:.3f} (dealt {dealt['worst_goodput']:.3f})  "
        f"spared {ours['spared_bytes'] / 2**30:.1f} GiB (dealt {dealt['spared_bytes'] / 2**30:.1f})  "
        f"a node lost: {row['node_lost']['moved']} moves for its {row['homeless']} queries, "
        f"back: {row['node_back']['moved']} moves"
    )


def small_cases(options: argparse.Namespace, count: int) -> list[Case]:
    rng = random.Random(options.seed)
    return [
        generated(
            rng, options.small_queries, options.small_nodes,
            load=rng.choice(LOADS), memory=rng.choice(MEMORIES), families=rng.randint(1, 4),
        )
        for _ in range(count)
    ]  # fmt: skip


def exact(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Gaps to HiGHS: of the worst query's goodput, then of bytes held where that is equal."""
    from placement_milp import best_placement

    rows = []
    for case in small_cases(options, options.exact):
        began_s = time.perf_counter()
        try:
            pressure, weights_bytes = best_placement(*case.arguments)
        except AssertionError as error:
            rows.append({"unsolved": str(error)})
            continue
        best = {"pressure": pressure, "weights_bytes": weights_bytes, "took_s": time.perf_counter() - began_s}
        ours, took = timed(case)
        rows.append(
            {"best": best, "ours": measured(ours) | took, "dealt": measured(deal_in_turn(*case.arguments))}
        )  # fmt: skip
    print_gaps(rows)
    return rows


def print_gaps(rows: Sequence[dict[str, Any]]) -> None:
    solved = [row for row in rows if "best" in row]
    for name in ("ours", "dealt"):
        gaps = [1 - row["best"]["pressure"] / row[name]["pressure"] for row in solved]
        equal = [row for row, gap in zip(solved, gaps, strict=True) if gap < 1e-4]
        extra = [row[name]["weights_bytes"] / row["best"]["weights_bytes"] - 1 for row in equal]
        print(
            f"{name:>6} against HiGHS, {len(solved)} of {len(rows)} solved: worst goodput {_gap(gaps)}; "
            f"bytes where that is equal ({len(equal)}) {_gap(extra)}"
        )


def _gap(gaps: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(gaps):.2f} % off on average, {100 * max(gaps):.2f} % at most" if gaps else "-"


def simulated(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The worst query's goodput on simulated nodes, where each node's queries are run as a release is."""
    rows = []
    for case in small_cases(options, options.simulated):
        row = {}
        for name, placement in (("ours", place(*case.arguments)), ("dealt", deal_in_turn(*case.arguments))):
            goodput = [
                found for node in placement.nodes if node.queries for found in run(case, node.name, node.queries)
            ]
            row[name] = {
                "expected_worst": placement.worst_goodput_fraction,
                "worst": min(goodput),
                "mean": statistics.fmean(goodput),
            }
        rows.append(row)
    for name in ("ours", "dealt"):
        values = {key: statistics.fmean(row[name][key] for row in rows) for key in ("expected_worst", "worst", "mean")}
        print(
            f"{name:>6} simulated on {len(rows)} fleets: worst goodput {values['worst']:.3f} (expected "
            f"{values['expected_worst']:.3f}), mean {values['mean']:.3f}"
        )
    better = sum(row["ours"]["worst"] >= row["dealt"]["worst"] - 0.001 for row in rows)
    print(f"       ours no worse than dealt in {better} of {len(rows)}")
    return rows


def run(case: Case, node: str, queries: Sequence[str]) -> list[float]:
    """Goodput of each query on its node."""
    models = {
        name: ServedModel(
            tuple(ModelLayer(case.weight_bytes[weight], weight, f"{name}/{weight}") for weight in asked.weights),
            asked.fps,
            asked.slo_ms,
        )
        for name in queries
        for asked in (case.queries[name],)
    }
    memory_bytes = next(each.memory_bytes for each in case.nodes if each.name == node)
    found = simulate(
        models, batched(case.profiles[node], queries), "ours_released", budget_bytes=memory_bytes, duration_ms=4000
    )
    return list(found.goodput_fraction.values())


def batched(profile: DeviceProfile, queries: Sequence[str]) -> DeviceProfile:
    """Of a batch every further frame takes two thirds of the first one's time: our assumption."""

    def one(name: str) -> QueryProfile:
        run_ms, space = profile.queries[name].run_ms[1], profile.queries[name].workspace_bytes[1]
        sizes = (1, 2, 4, 8)
        return QueryProfile(
            run_ms={size: run_ms * (1 + (size - 1) * 2 / 3) for size in sizes},
            workspace_bytes={size: space * size for size in sizes},
        )

    return profile.model_copy(update={"queries": {name: one(name) for name in queries}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--small-queries", type=int, default=10)
    parser.add_argument("--small-nodes", type=int, default=3)
    parser.add_argument("--exact", type=int, default=50, help="small fleets to compare with the exact solver")
    parser.add_argument("--simulated", type=int, default=50, help="small fleets to simulate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--machine", default="cpu")
    options = parser.parse_args()
    record = records.heading("bench_placement") | {"options": {key: str(value) for key, value in vars(options).items()}}
    record["large"] = large(options)
    record["exact"] = exact(options) if options.exact else []
    record["simulated"] = simulated(options) if options.simulated else []
    print(f"raw numbers: {records.write(record, options.machine)}")


if __name__ == "__main__":
    main()

"""Benchmark: how far order search and batch sizes are from the best there is, and how long fifty queries take.

python jobs/bench_order.py

Random nodes: families of models, each with layers in common and a private rest, in a part of the memory they need.
Orders are compared with all orders of as many queries as can be tried, by the bytes they move in a round; batch sizes
with all choices, by the worst query's goodput that policy.batching expects.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import records

from gemel_ray.policy.batching import Demand, choose_batch_sizes, expect
from gemel_ray.policy.duty_cycle import Round, TurnCost, bundle
from gemel_ray.policy.order import choose_order, cycle_bytes

MIB = 1 << 20
# Of a PCIe 3.0 device: bytes loaded in a millisecond.
LOAD_BYTES_PER_MS = 12 * MIB
SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Node:
    """Queries on one device: the weights of each, their bytes, what is asked, and the budget."""

    weights: dict[str, tuple[str, ...]]
    weight_bytes: dict[str, int]
    demands: dict[str, Demand]
    budget_bytes: int

    @property
    def workspace_bytes(self) -> dict[str, int]:
        """Of one frame."""
        return {name: demand.costs[1].workspace_bytes for name, demand in self.demands.items()}

    def moved_bytes(self, order: tuple[str, ...]) -> float:
        """In one round of that order."""
        return cycle_bytes(
            order, self.weights, self.weight_bytes,
            budget_bytes=self.budget_bytes, workspace_bytes=self.workspace_bytes,
        )  # fmt: skip

    def round(self, order: tuple[str, ...]) -> Round:
        """For choosing batch sizes."""
        load_ms = {weight: count / LOAD_BYTES_PER_MS for weight, count in self.weight_bytes.items()}
        return Round(order, bundle(self.weights, self.weight_bytes, load_ms))


def generated(rng: random.Random, queries: int) -> Node:
    """Two to four families, shuffled; memory from just the largest model to 75 % of everything."""
    families = rng.randint(2, 4)
    weights, weight_bytes, demands = {}, {}, {}
    for place in range(queries):
        name, family = f"q{place}", rng.randrange(families)
        common = [f"family{family}/{layer}" for layer in range(rng.randint(1, 4))]
        weights[name] = (*common, f"{name}/own")
        weight_bytes |= {layer: weight_bytes.get(layer, rng.randint(4, 60) * MIB) for layer in weights[name]}
        run_ms, space = rng.uniform(2, 30), rng.randint(4, 40) * MIB
        costs = {size: TurnCost(run_ms * (1 + (size - 1) * 2 / 3), size * space) for size in SIZES}
        demands[name] = Demand(rng.choice((5, 10, 15, 30)), rng.choice((50, 100, 200, 400)), costs)
    least = max(
        sum(weight_bytes[weight] for weight in weights[name]) + demands[name].costs[SIZES[-1]].workspace_bytes
        for name in weights
    )
    everything = max(sum(weight_bytes.values()), least)
    return Node(weights, weight_bytes, demands, least + round(rng.choice((0, 0.25, 0.5, 0.75)) * (everything - least)))


def searched(node: Node, exact_queries: int) -> tuple[str, ...]:
    return choose_order(
        node.weights, node.weight_bytes, budget_bytes=node.budget_bytes, workspace_bytes=node.workspace_bytes,
        exact_queries=exact_queries,
    )  # fmt: skip


def order_gaps(rng: random.Random, count: int, queries: int) -> Iterator[dict[str, float]]:
    """Bytes moved by the local search's order and by the given one, above the best of all, as shares of the best."""
    for _ in range(count):
        node = generated(rng, queries)
        names = tuple(node.weights)
        best = min(node.moved_bytes((names[0], *rest)) for rest in permutations(names[1:]))
        found, given = node.moved_bytes(searched(node, exact_queries=0)), node.moved_bytes(names)
        yield {"gap": found / best - 1 if best else 0.0, "given_gap": given / best - 1 if best else 0.0}


def batch_gaps(rng: random.Random, count: int, queries: int) -> Iterator[dict[str, float]]:
    """Expected goodput of the worst query, below the best of all choices."""
    for _ in range(count):
        node = generated(rng, queries)
        planned = node.round(tuple(node.weights))
        options: dict[str, Any] = {"budget_bytes": node.budget_bytes, "overlap": True}
        choices = (dict(zip(node.demands, sizes, strict=True)) for sizes in product(SIZES, repeat=queries))
        best = max(expect(sizes, planned, node.demands, **options).score[0] for sizes in choices)
        found = choose_batch_sizes(planned, node.demands, **options).score[0]
        yield {"gap": best - found, "best": best}


def timed(rng: random.Random, count: int, queries: int) -> Iterator[dict[str, float]]:
    """Processor seconds for one node's order, then for its batch sizes."""
    for _ in range(count):
        node = generated(rng, queries)
        began_s = time.process_time()
        order = searched(node, exact_queries=7)
        ordered_s = time.process_time()
        choose_batch_sizes(node.round(order), node.demands, budget_bytes=node.budget_bytes, overlap=True)
        yield {"order_s": ordered_s - began_s, "batches_s": time.process_time() - ordered_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=100, help="nodes whose orders are all tried")
    parser.add_argument("--order-queries", type=int, default=7)
    parser.add_argument("--batches", type=int, default=100, help="nodes whose batch sizes are all tried")
    parser.add_argument("--batch-queries", type=int, default=4)
    parser.add_argument("--timed", type=int, default=20, help="nodes of fifty queries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default="cpu")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    record = records.heading("bench_order") | {"options": {key: str(value) for key, value in vars(options).items()}}
    record["orders"] = list(order_gaps(rng, options.orders, options.order_queries))
    record["batches"] = list(batch_gaps(rng, options.batches, options.batch_queries))
    record["timed"] = list(timed(rng, options.timed, 50))
    for name in ("orders", "batches", "timed"):
        for column in record[name][0]:
            values = [row[column] for row in record[name]]
            print(f"{name:8} {column:10} mean {statistics.fmean(values):.4f}  most {max(values):.4f}")
    print(f"raw numbers: {records.write(record, options.machine)}")


if __name__ == "__main__":
    main()

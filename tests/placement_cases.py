"""Fleets to place queries on: drawn by hypothesis, and generated from a seed for tests and benchmarks."""

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from gemel_ray.policy.placement import place
from gemel_ray.policy.planning import ServedQuery
from gemel_ray.spec.placement import NodeCapacity
from gemel_ray.spec.profile import DeviceProfile, QueryProfile
from gemel_ray.spec.units import MIB


@dataclass
class Case:
    """The arguments of `place`."""

    queries: dict[str, ServedQuery]
    weight_bytes: dict[str, int]
    nodes: list[NodeCapacity]
    profiles: dict[str, DeviceProfile]

    @property
    def arguments(self):
        return self.queries, self.weight_bytes, self.nodes, self.profiles

    def without(self, node):
        """The same fleet with a node less."""
        kept = [each for each in self.nodes if each.name != node]
        return Case(self.queries, self.weight_bytes, kept, self.profiles)

    def placed(self, **options):
        return place(*self.arguments, **options)


def profile(costs, *, load_bytes_per_ms=10.0):
    """A device on which each query takes (run ms, workspace bytes) at batch size 1."""
    return DeviceProfile(
        device="invented",
        estimated=True,
        load_fixed_ms=0,
        load_bytes_per_ms=load_bytes_per_ms,
        queries={
            name: QueryProfile(run_ms={1: run_ms}, workspace_bytes={1: space})
            for name, (run_ms, space) in costs.items()
        },
    )


@st.composite
def cases(draw, most_queries=9, most_nodes=4):
    """Small fleets with shared weights, tight and wide memories, up to two kinds of devices, late queries."""
    weights = {f"w{number}": draw(st.integers(0, 40)) for number in range(draw(st.integers(1, 8)))}
    names = [f"q{place}" for place in range(draw(st.integers(1, most_queries)))]
    queries = {
        name: ServedQuery(
            tuple(draw(st.lists(st.sampled_from(sorted(weights)), min_size=1, max_size=4, unique=True))),
            draw(st.integers(1, 40)),
            draw(st.sampled_from([5.0, 50.0, 200.0])),
        )
        for name in names
    }
    kinds = [
        profile(
            {name: (draw(st.floats(0, 30)), draw(st.integers(0, 10))) for name in names},
            load_bytes_per_ms=draw(st.floats(0.5, 50)),
        )
        for _ in range(draw(st.integers(1, 2)))
    ]
    least = max(sum(weights[weight] for weight in query.weights) for query in queries.values()) + 10
    nodes = [
        NodeCapacity(f"n{place}", least + draw(st.integers(0, 60))) for place in range(draw(st.integers(1, most_nodes)))
    ]
    return Case(queries, weights, nodes, {node.name: draw(st.sampled_from(kinds)) for node in nodes})


def generated(rng: random.Random, queries: int, nodes: int, *, load: float, memory: float, families: int) -> Case:
    """Families of models, each with shared layers and a private remainder, on two kinds of nodes.

    `load` is the share of all nodes' time that all frames take, `memory` that of all merged weights, were they dealt
    out once per node and family, that the nodes hold together.
    """
    kinds = [
        (rng.uniform(5, 40), rng.randint(20, 200) * MIB, rng.choice((0.3, 0.6, 0.9)), rng.randint(5, 60) * MIB)
        for _ in range(families)
    ]
    asked, weights, costs = {}, {}, {}
    for number in range(queries):
        family = rng.randrange(families)
        run_ms, size, shared, space = kinds[family]
        name, layers = f"q{number:04}", [f"f{family}-{layer}" for layer in range(6) if rng.random() < 0.8]
        weights |= {layer: int(size * shared / 6) for layer in layers} | {name: int(size * (1 - shared))}
        asked[name] = ServedQuery((*layers, name), rng.choice((5, 10, 15, 30)), rng.choice((100, 200, 400)))
        costs[name] = (run_ms, space)
    speeds = [rng.choice((1.0, 1.0, 2.0)) for _ in range(nodes)]
    total = sum(query.fps * costs[name][0] / 1000 for name, query in asked.items())
    scale = load * sum(speeds) / total
    profiles = {
        speed: profile(
            {name: (run_ms * scale / speed, space) for name, (run_ms, space) in costs.items()},
            load_bytes_per_ms=speed * 6e6,
        )
        for speed in (1.0, 2.0)
    }
    alone = max(sum(weights[weight] for weight in each.weights) + costs[name][1] for name, each in asked.items())
    per_node = sum(weights.values()) / nodes + max(space for _, space in costs.values())
    boxes = [
        NodeCapacity(f"n{place:03}", int(max(alone, memory * per_node * rng.choice((0.8, 1.0, 1.5)))))
        for place in range(nodes)
    ]
    return Case(asked, weights, boxes, {box.name: profiles[speed] for box, speed in zip(boxes, speeds, strict=True)})

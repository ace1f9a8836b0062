"""Small plans for tests of the edge: queries with their weights' bytes, everything else by default."""

import hashlib

from hypothesis import strategies as st

from gemel_ray.spec.actions import Frame
from gemel_ray.spec.plan import EdgePlan, PlannedQuery
from gemel_ray.spec.profile import DeviceProfile, QueryProfile
from gemel_ray.spec.release import BlobInfo, Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.workload import ModelSpec, Query


def query_of(name, *weights, batch=1, run_ms=10.0, workspace_bytes=0):
    """A query whose batches each take `run_ms` for the first frame and half of it for every further one."""
    sizes = range(1, batch + 1)
    return PlannedQuery(
        name=name,
        weights=weights,
        batch_size=batch,
        run_ms={size: run_ms * (1 + (size - 1) / 2) for size in sizes},
        workspace_bytes={size: workspace_bytes * size for size in sizes},
    )


def plan_of(*queries, weight_bytes, budget_bytes, load_ms=5.0, overlap=True):
    """Every weight takes `load_ms` to load."""
    return EdgePlan(queries, weight_bytes, dict.fromkeys(weight_bytes, load_ms), budget_bytes, overlap)


def kept(query, number, arrived_ms=0.0):
    """A frame that is never dropped."""
    return Frame(query, number, arrived_ms, arrived_ms + 100, droppable=False)


def camera_frame(query, number, arrived_ms=0.0, slo_ms=100.0):
    """A frame that gives way to newer ones."""
    return Frame(query, number, arrived_ms, arrived_ms + slo_ms)


EITHER = st.booleans()


@st.composite
def plans(draw, overlap=EITHER):
    """Plans that hold at least each query alone: shared weights, batches, workspace, tight and wide budgets."""
    names = [f"w{place}" for place in range(draw(st.integers(1, 8)))]
    weight_bytes = {name: draw(st.integers(0, 40)) for name in names}
    queries = tuple(
        PlannedQuery(
            name=f"q{place}",
            weights=tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True))),
            batch_size=(batch := draw(st.integers(1, 3))),
            run_ms={size: draw(st.floats(0, 30)) for size in range(1, batch + 1)},
            workspace_bytes={size: draw(st.integers(0, 20)) for size in range(1, batch + 1)},
            needed_after=draw(st.dictionaries(st.sampled_from(names), st.floats(0, 1))),
        )
        for place in range(draw(st.integers(1, 5)))
    )
    least = max(sum(weight_bytes[w] for w in query.weights) + max(query.workspace_bytes.values()) for query in queries)
    load_ms = {name: draw(st.floats(0, 30)) for name in names}
    return EdgePlan(queries, weight_bytes, load_ms, max(least, 1) + draw(st.integers(0, 60)), draw(overlap))


@st.composite
def traffic(draw, plan, most=30):
    """Frames for a plan's queries, droppable and not, at any times and with any deadlines."""
    queries = [query.name for query in plan.queries]
    return [
        Frame(
            query=draw(st.sampled_from(queries)),
            frame=number,
            arrived_ms=(arrived_ms := draw(st.floats(0, 300))),
            deadline_ms=arrived_ms + draw(st.floats(0, 150)),
            droppable=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, most)))
    ]


@st.composite
def sharing(draw, most_queries=6, most_bytes=30, least_bytes=0):
    """Which queries use which weights, the weights' bytes, and a budget that holds at least each query alone."""
    names = [f"w{place}" for place in range(draw(st.integers(1, 8)))]
    weight_bytes = {name: draw(st.integers(least_bytes, most_bytes)) for name in names}
    weights = {
        f"q{place}": tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True)))
        for place in range(draw(st.integers(1, most_queries)))
    }
    workspace_bytes = {query: draw(st.integers(0, 10)) for query in weights}
    least = max(sum(weight_bytes[w] for w in needed) + workspace_bytes[query] for query, needed in weights.items())
    return weights, weight_bytes, workspace_bytes, max(least, 1) + draw(st.integers(0, 60))


def blob(name):
    """A content hash, as good as any, for a weight of that name."""
    return hashlib.sha256(name.encode()).hexdigest()


def manifest_of(weights, weight_bytes, *, fps=10, slo_ms=100):
    """A release of queries with these weights; weight names become hashes, see `blob`."""
    queries = {
        name: ReleasedQuery(
            query=Query(
                name=name,
                feed="f",
                model=ModelSpec(architecture="resnet18", classes=("background", "car")),
                accuracy_target=0.95,
                fps=fps,
                slo_ms=slo_ms,
            ),
            weights={f"layer{place}": blob(weight) for place, weight in enumerate(needed)},
        )
        for name, needed in weights.items()
    }
    used = {weight for needed in weights.values() for weight in needed}
    held = sum(weight_bytes[weight] for weight in used)
    return Manifest(
        release=1,
        workload_name="test",
        workload_hash="0" * 64,
        queries=queries,
        blobs={blob(w): BlobInfo(tensor_bytes=weight_bytes[w], file_bytes=weight_bytes[w] + 100) for w in used},
        bytes_before=max(held, 1),
        bytes_after=held,
        provenance=Provenance(created_at="2026-01-01T00:00:00Z", command="test", seed=0, versions={}),
    )


def profile_of(queries, *, run_ms=None, workspace_bytes=None, load_bytes_per_ms=10.0, load_fixed_ms=0.0):
    """The same costs for all queries, by batch size: 10 ms and half of it for every further frame by default."""
    run_ms = run_ms or {1: 10.0, 2: 15.0, 4: 25.0}
    one = QueryProfile(run_ms=run_ms, workspace_bytes=workspace_bytes or dict.fromkeys(run_ms, 0))
    return DeviceProfile(
        device="invented",
        estimated=True,
        load_fixed_ms=load_fixed_ms,
        load_bytes_per_ms=load_bytes_per_ms,
        queries=dict.fromkeys(queries, one),
    )

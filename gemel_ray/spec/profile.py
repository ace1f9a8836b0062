"""What a model costs on a device: load time, run time by batch size, workspace bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from gemel_ray.spec.errors import InputError, nearest
from gemel_ray.spec.strict import Strict

# How a model is computed; see engine.ways.
Way = Literal["plain", "channels_last", "bfloat16", "float16"]
WAYS: tuple[Way, ...] = get_args(Way)
# No measurement comes near these bounds, and sums and products of what lies within them stay finite.
Milliseconds = Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)]
BytesPerMs = Annotated[float, Field(ge=1e-3, le=1e15, allow_inf_nan=False)]
Slowdown = Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)]
BatchSize = Annotated[int, Field(gt=0, le=65_536)]
WorkspaceBytes = Annotated[int, Field(ge=0, lt=2**60)]

# Of one inference; more than any machine has cores, and torch ends the process at absurd numbers.
MOST_THREADS = 1024


class QueryProfile(Strict):
    """Run time and workspace of one query's model, by batch size."""

    run_ms: Annotated[dict[BatchSize, Milliseconds], Field(min_length=1)]
    workspace_bytes: dict[BatchSize, WorkspaceBytes]
    # By the path of each module that holds weights, however a release divides them: after which fraction of a run they
    # are first needed. Empty where nobody watched; everything counts as needed from the start then.
    first_use: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)

    # The way that was measured, and is to be computed in.
    way: Way = "plain"

    @model_validator(mode="after")
    def _same_batch_sizes(self) -> QueryProfile:
        if self.run_ms.keys() != self.workspace_bytes.keys():
            raise ValueError("run_ms and workspace_bytes must list the same batch sizes")
        return self

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Measured batch sizes, ascending."""
        return tuple(sorted(self.run_ms))


class DeviceProfile(Strict):
    """All costs on one device; loading takes a fixed time per weight set and a time per byte."""

    device: str
    estimated: bool
    load_fixed_ms: Milliseconds
    load_bytes_per_ms: BytesPerMs
    # How many times as long an inference takes while weights load, and a load while an inference computes: more than
    # once where both use the same cores or the same memory.
    run_slowdown: Slowdown = 1.0
    load_slowdown: Slowdown = 1.0
    queries: dict[str, QueryProfile]

    def load_ms(self, count_bytes: int) -> float:
        """Time to bring one weight set of that size onto the device."""
        return self.load_fixed_ms + count_bytes / self.load_bytes_per_ms

    def run_ms(self, query: str, batch_size: int) -> float:
        """Time of one inference; between measured batch sizes the next larger one counts."""
        profile = self.queries[query]
        fitting = [size for size in profile.batch_sizes if size >= batch_size]
        return profile.run_ms[fitting[0] if fitting else profile.batch_sizes[-1]]


def ways_named(names: Iterable[str]) -> tuple[Way, ...]:
    """The ways of these names, each once. InputError for one that is not known."""
    known: dict[str, Way] = {way: way for way in WAYS}
    found: dict[Way, None] = {}
    for name in names:
        if name not in known:
            raise InputError(f"--way {name!r} is no way to compute; {nearest(name, WAYS)}")
        found[known[name]] = None
    return tuple(found)

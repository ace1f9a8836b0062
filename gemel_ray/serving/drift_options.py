"""How a service watches for drift: the `drift:` of a box's options or of a Serve YAML file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gemel_ray.policy.drift import DriftSettings, blocks_between
from gemel_ray.spec.strict import Strict
from gemel_ray.spec.units import MIB, ByteSize


class RemergeOptions(Strict):
    """The Ray cluster that a re-merge is submitted to as a job. The kept frames go along; the workload's weights, its
    other feeds and the store must be there under the same names."""

    # Of the dashboard, such as http://head:8265.
    address: Annotated[str, Field(pattern=r"^https?://")]
    # Frames to have before that. A search splits them in three, by time, and judges on a fifth of them.
    frames: Annotated[int, Field(ge=200)] = 1000
    # Further options of `gemel search`, such as [--trials, '20'].
    arguments: tuple[str, ...] = ()


class DriftOptions(Strict):
    """Whether merged models still answer like their originals, on frames sampled while serving."""

    # One frame of each query in so many seconds, at random times. Closer ones are alike, which makes for false alarms.
    sample_every_s: Annotated[float, Field(gt=0, le=86_400)] = 10
    # Without drift, at most one false alarm of a query in so many days, on average.
    false_alarm_days: Annotated[float, Field(gt=0, le=36_500)] = 100
    # Drift is agreement this much below the query's accuracy target.
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    # Whether a query that drifted runs its original again.
    revert: bool = True
    # Sampled frames that wait in memory to be compared.
    waiting: ByteSize = 64 * MIB
    # Originals in memory at once, besides the engine's own budget.
    originals: ByteSize = 1024 * MIB
    # Frames on disk for a re-merge, of all queries together; they stay on this machine.
    keep: ByteSize = 256 * MIB
    # The workload file that a re-merge is made of. `gemel edge` takes the one that it was given.
    workload: str | None = None
    # None leaves the re-merge to whoever reads the event, which tells the command.
    remerge: RemergeOptions | None = None

    def settings(self, target: float) -> DriftSettings:
        """The test of a query with that accuracy target."""
        between = blocks_between(self.false_alarm_days, sample_every_s=self.sample_every_s)
        return DriftSettings(target=target, blocks_between=between, margin=self.margin)

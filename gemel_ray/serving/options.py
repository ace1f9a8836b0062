"""The arguments of the Serve application (`args:` of a Serve YAML file), and those of a box on its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from gemel_ray.serving.backend import Limits
from gemel_ray.serving.drift_options import DriftOptions
from gemel_ray.serving.tokens import Role, TokenSource, without_tokens
from gemel_ray.spec.documents import read_yaml
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.profile import MOST_THREADS, Way
from gemel_ray.spec.strict import Strict, explain
from gemel_ray.spec.units import MIB, ByteSize
from gemel_ray.spec.workload import Name

Share = Annotated[float, Field(ge=0, le=64)]
Threads = Annotated[int, Field(gt=0, le=MOST_THREADS)]


class NodeOptions(Strict):
    """One engine process: the bytes it may hold, where it computes, and what it asks of Ray."""

    name: Name = "local"
    memory: ByteSize
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Labels that the Ray node must carry, such as {edge: box-a}; empty lets Ray choose.
    labels: dict[str, str] = Field(default_factory=dict)
    # Shares of the Ray node that are booked; they bound nothing. The engine mostly waits.
    num_cpus: Share = 0.1
    num_gpus: Share = 0
    # Where evicted weights come back from: memory the system has to spare, or always the disk.
    reload_from: Literal["memory", "disk"] = "memory"
    # Threads of one inference on a CPU; None takes all cores.
    threads: Threads | None = None
    # Ways to compute that are tried beside the plain one, and taken where they are a tenth faster: channels_last,
    # bfloat16, float16. Answers then differ by rounding.
    ways: tuple[Way, ...] = ()
    # A node that loses frames looks so often for a plan that would have answered more of them; None keeps its plan.
    replan_every_s: Annotated[float, Field(ge=1, le=86_400)] | None = 60


class HttpOptions(Strict):
    """Who may ask for what: the limits of everything that answers over HTTP."""

    # Blobs and the last good release are kept here, on each node's own disk.
    cache: str = "~/.cache/gemel_ray"
    allow_factories: bool = False
    # No answer within this time is an error; it also ends the wait for a lost engine and for a request's body.
    request_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10
    max_body: ByteSize = 64 * MIB
    # Requests with frames that may be under way at once; more are answered with 429.
    max_in_flight: Annotated[int, Field(gt=0, le=192)] = 128
    # Whether the status page may show each query's newest frame: whoever may read then sees what the camera sees.
    thumbnails: bool = True
    # Who may call, by role; without tokens, callers of this machine only, unless everybody is let in.
    tokens: Annotated[dict[Role, TokenSource], BeforeValidator(without_tokens)] = Field(default_factory=dict)
    allow_anonymous: bool = False

    @model_validator(mode="after")
    def _tokens_or_everybody(self) -> Self:
        if self.tokens and self.allow_anonymous:
            raise ValueError("both 'tokens' and 'allow_anonymous: true' are given; choose one")
        return self

    def with_thumbnails(self, wanted: bool) -> Self:
        """The same, without them where they are not wanted here."""
        return self.model_copy(update={"thumbnails": self.thumbnails and wanted})

    def limits(self) -> Limits:
        """What one request may ask for."""
        return Limits(
            max_body_bytes=self.max_body,
            request_timeout_s=self.request_timeout_s,
            max_in_flight=self.max_in_flight,
            has_thumbnails=self.thumbnails,
        )


class ServeOptions(HttpOptions):
    """Which release to serve, on which nodes, within which limits."""

    store: Annotated[str, Field(min_length=1)]
    # None serves the store's HEAD: with `watch`, whatever it is; without, what it is when the application is deployed.
    release: Annotated[int, Field(gt=0)] | None = None
    nodes: Annotated[tuple[NodeOptions, ...], Field(min_length=1)] = (NodeOptions(memory=1024 * MIB),)
    # Serve what the store's HEAD names, now and later: a search's improvements, and what `gemel revert` goes back to.
    watch: bool = False
    # One node serves a new release so long, without a frame that fails, before the others follow.
    canary_s: Annotated[float, Field(ge=0, le=86_400)] = 5
    # Labels of the machine that ingress and controller belong on, such as {role: head}; empty lets Ray choose.
    front_labels: dict[str, str] = Field(default_factory=dict)
    # An engine may be silent so long before its queries move to others; without its machine, they move at once.
    grace_s: Annotated[float, Field(ge=0, le=86_400)] = 10

    # Whether sampled frames are compared with the originals' answers; None leaves that out. See drift_options.py.
    drift: DriftOptions | None = None

    @property
    def has_controller(self) -> bool:
        """Whether there is anything to decide while it runs."""
        return self.watch or len(self.nodes) > 1

    @model_validator(mode="after")
    def _watch_or_stay(self) -> ServeOptions:
        if self.watch and self.release is not None:
            raise ValueError(f"'watch: true' follows HEAD, and 'release: {self.release}' stays with one; choose one")
        return self

    @model_validator(mode="after")
    def _one_engine_a_name(self) -> ServeOptions:
        names = [node.name for node in self.nodes]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"nodes repeat: {repeated}; give each node its own name")
        return self


class EdgeOptions(HttpOptions):
    """How a box on its own (`gemel edge --options FILE`) serves, and how it follows its store."""

    # The queries that this box answers; None answers all of the release.
    queries: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    # The store is asked for news so often, and less often, down to `poll_most_s`, while it does not answer.
    poll_every_s: Annotated[float, Field(gt=0, le=86_400)] = 30
    poll_most_s: Annotated[float, Field(gt=0, le=86_400)] = 600
    # Where evicted weights come back from: memory the system has to spare, or always the disk.
    reload_from: Literal["memory", "disk"] = "memory"
    # Threads of one inference on a CPU; None takes all cores.
    threads: Threads | None = None
    # A box that loses frames looks so often for a plan that would have answered more of them; None keeps its plan.
    replan_every_s: Annotated[float, Field(ge=1, le=86_400)] | None = 60
    # Whether sampled frames are compared with the originals' answers; None leaves that out. See drift_options.py.
    drift: DriftOptions | None = None


def parse_options(args: Mapping[str, Any], *, base: Path | None = None) -> ServeOptions:
    """Check the application's arguments; a relative store becomes absolute below `base`.

    `base` is $GEMEL_HOME, or else the working directory. InputError names the field, the value and the fix.
    """
    try:
        options = ServeOptions.model_validate(args)
    except ValidationError as error:
        raise InputError(f"arguments of the Serve application:\n{explain(error, ServeOptions)}") from error
    changed: dict[str, object] = {"store": absolute_store(options.store, base or home())}
    if options.drift and options.drift.workload:
        workload = absolute_store(options.drift.workload, base or home())
        changed["drift"] = options.drift.model_copy(update={"workload": workload})
    return options.model_copy(update=changed)


def load_edge_options(path: Path | None) -> EdgeOptions:
    """Read a YAML file of EdgeOptions; the defaults without one. InputError names the file, the field and the fix."""
    if path is None:
        return EdgeOptions()
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--options {path}: cannot be read as YAML ({error}); correct it there") from error
    try:
        return EdgeOptions.model_validate({} if data is None else data)
    except ValidationError as error:
        raise InputError(f"--options {path}:\n{explain(error, EdgeOptions, data)}") from error


def home() -> Path:
    """The folder that relative stores are found from."""
    return Path(os.environ.get("GEMEL_HOME") or Path.cwd())


def absolute_store(store: str, base: Path) -> str:
    """A store's URI, or its absolute path: other processes run in other folders."""
    return store if "://" in store else str((base / Path(store).expanduser()).absolute())

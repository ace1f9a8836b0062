"""The workload file: queries, their feeds and models, and the nodes that are to run them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from gemel_ray.spec.documents import read_yaml
from gemel_ray.spec.errors import WorkloadError, nearest
from gemel_ray.spec.feeds import FeedSpec, Fps, Fraction
from gemel_ray.spec.strict import NotBoolean, Strict, explain
from gemel_ray.spec.units import ByteSize

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FACTORY = re.compile(r"[^.:][^:]*:[^:]+")
# Keywords of torchvision's builders that fetch weights, old ones too.
_DOWNLOADING = frozenset({"weights", "weights_backbone", "pretrained", "pretrained_backbone"})


def _check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is not a name; use up to 64 letters, digits, '-' and '_', the first a letter or digit"
        )
    return name


def _check_option(value: object) -> object:
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{value!r} is not an option; give text, a finite number, true or false")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Target = Annotated[float, Field(gt=0, le=1), NotBoolean]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False), NotBoolean]
Option = Annotated[bool | int | float | str, BeforeValidator(_check_option)]
# What a target is held against: the original's own answers, or both models' accuracy on the feed's labels.
Judge = Literal["agreement", "labels"]
SpecT = TypeVar("SpecT", bound=Strict)


class ModelSpec(Strict):
    """One model: how to build it, what it answers, and where its weights are."""

    architecture: str | None = None
    # 'package.module:function'; runs the user's code, so it must be allowed explicitly.
    factory: str | None = None
    task: Literal["classification", "detection"] | None = None
    # The first class is the background: what is answered when none of the others is there.
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    weights: str | None = None
    # Frames are resized to this square before a classifier sees them; detectors resize themselves. All frames of a
    # feed are held at this size: beyond its bound, no machine's memory is enough.
    input_size: Annotated[int, Field(gt=0, le=4096), NotBoolean] = 224
    # Further keyword arguments of the builder, such as {min_size: 160} for a detector.
    options: dict[str, Option] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_builder(self) -> ModelSpec:
        if (self.architecture is None) == (self.factory is None):
            raise ValueError("give either 'architecture' (a torchvision builder) or 'factory' (pkg.module:function)")
        if self.factory is not None and (self.task is None or _FACTORY.fullmatch(self.factory) is None):
            raise ValueError(
                "a factory is written 'pkg.module:function' and needs 'task: classification' or 'detection'"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes repeat: {list(self.classes)}; name each once")
        return self

    @model_validator(mode="after")
    def _options_stay_clear(self) -> ModelSpec:
        if "num_classes" in self.options:
            raise ValueError("options: 'num_classes' is how many 'classes' there are; name each of them there instead")
        # A user's own factory may mean anything by these.
        fetching = sorted(_DOWNLOADING & self.options.keys()) if self.factory is None else []
        if fetching:
            raise ValueError(
                f"options: {fetching[0]!r} would download weights; name a file, or 'torchvision:NAME', under the "
                "model's own 'weights' instead"
            )
        return self

    @property
    def builder(self) -> str:
        """The architecture or factory, whichever was given."""
        return self.architecture or self.factory or ""


class Query(Strict):
    """One model, one feed, one question."""

    name: Name
    feed: Name
    model: ModelSpec
    accuracy_target: Target
    judged_by: Judge = "agreement"
    fps: Fps
    slo_ms: Milliseconds
    # Detection answers below this score are not given.
    score_threshold: Fraction = 0.5


class Node(Strict):
    """One edge box (or one GPU of it) and the bytes that weights and workspace may take there."""

    name: Name
    memory: ByteSize
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Defaults(Strict):
    """Values for queries that do not set their own."""

    accuracy_target: Target = 0.95
    judged_by: Judge = "agreement"
    fps: Fps = 30
    slo_ms: Milliseconds = 100


class Workload(Strict):
    """All queries of one or more boxes."""

    name: Name
    defaults: Defaults = Defaults()
    feeds: dict[Name, FeedSpec]
    queries: Annotated[tuple[Query, ...], Field(min_length=1)]
    nodes: tuple[Node, ...] = ()
    # The folder that the file's relative paths started from.
    _base: Path | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, data: Any) -> Any:  # noqa: ANN401 - raw YAML
        if not isinstance(data, dict) or not isinstance(data.get("queries"), list):
            return data
        try:
            defaults = Defaults.model_validate(data.get("defaults") or {}).model_dump()
        except ValidationError:
            defaults = Defaults().model_dump()  # reported by the field itself
        filled = [defaults | query if isinstance(query, dict) else query for query in data["queries"]]
        return data | {"queries": filled}

    @model_validator(mode="after")
    def _names_agree(self) -> Workload:
        _check_distinct("queries", (query.name for query in self.queries))
        _check_distinct("nodes", (node.name for node in self.nodes))
        for query in self.queries:
            # A query without an answer yet is taken to say ''; and replies would show nothing.
            if "" in query.model.classes:
                raise ValueError(
                    f"query {query.name!r}: a class has no name ({list(query.model.classes)}); give it one"
                )
            if query.feed not in self.feeds:
                raise ValueError(f"query {query.name!r}: no feed {query.feed!r}; {nearest(query.feed, self.feeds)}")
        return self

    def query(self, name: str) -> Query:
        """The query of that name; WorkloadError names the nearest one."""
        for query in self.queries:
            if query.name == name:
                return query
        raise WorkloadError(f"no query {name!r}; {nearest(name, [query.name for query in self.queries])}")

    def aimed_at(self, target: float) -> Workload:
        """The same with another accuracy target for every query."""
        queries = tuple(query.model_copy(update={"accuracy_target": target}) for query in self.queries)
        return self.model_copy(update={"queries": queries})

    def content_hash(self) -> str:
        """SHA-256 of what a merge depends on: queries and feeds, not where it runs, nor in which folder the file lies:
        a job's copy of it goes on with the same search."""
        content = _relative(self, self._base).model_dump(mode="json", exclude={"nodes", "name", "defaults"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_distinct(what: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{count} {what} are named {name!r}; give each its own name")


def load_workload(path: str | Path) -> Workload:
    """Read a workload file; its relative paths come back relative to the file's own folder.

    Raises WorkloadError that names the file, the field, the value and the fix.
    """
    path = Path(path)
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read ({error.strerror}); give the path of a workload file") from error
    # Besides YAMLError: dates such as 2026-99-99, text that is not UTF-8, brackets nested without end.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WorkloadError(f"{path}: is not valid YAML: {error}; correct it there") from error
    return parse_workload(data, source=str(path), base=path.resolve().parent)


def parse_workload(data: object, *, source: str, base: Path) -> Workload:
    """Check plain data as a workload and make its relative paths absolute below `base`."""
    if not isinstance(data, dict):
        raise WorkloadError(f"{source}: holds {type(data).__name__}, not a mapping with name, feeds and queries")
    try:
        workload = Workload.model_validate(data)
    except ValidationError as error:
        raise WorkloadError(f"{source}:\n{explain(error, Workload, data)}") from error
    found = _with_paths(workload, lambda value, where: _absolute_path(value, base, f"{source}: {where}"))
    found._base = base
    return found


def _relative(workload: Workload, base: Path | None) -> Workload:
    """Paths as a file in that folder would name them."""
    if base is None:
        return workload
    folder = _absolute_path(".", base, "base")
    return _with_paths(workload, lambda value, where: os.path.relpath(value, folder))


def _with_paths(workload: Workload, change: Callable[[str, str], str]) -> Workload:
    """Every path of a workload changed by what it is and where it stands. URIs (rtsp://...) and torchvision:NAME are
    none."""
    feeds = {
        name: _with_fields(feed, change, f"feeds.{name}", "path", "uri", "images", "annotations")
        for name, feed in workload.feeds.items()
    }
    queries = tuple(
        query.model_copy(update={"model": _with_fields(query.model, change, f"query {query.name!r}: model", "weights")})
        for query in workload.queries
    )
    return workload.model_copy(update={"feeds": feeds, "queries": queries})


def _with_fields(spec: SpecT, change: Callable[[str, str], str], where: str, *fields: str) -> SpecT:
    found = {field: getattr(spec, field) for field in fields if isinstance(getattr(spec, field, None), str)}
    paths = {name: each for name, each in found.items() if "://" not in each and not each.startswith("torchvision:")}
    return spec.model_copy(update={name: change(each, f"{where}.{name}") for name, each in paths.items()})


def _absolute_path(value: str, base: Path, where: str) -> str:
    try:
        return str((base / Path(value).expanduser()).resolve())
    except (ValueError, OSError, RuntimeError) as error:
        # NUL characters, '~nobody/...', circles of links.
        raise WorkloadError(f"{where}: {value!r} cannot be used as a path ({error}); correct it") from error

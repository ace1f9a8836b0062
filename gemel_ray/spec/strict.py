"""One strict base for everything read from files, and errors that name the field, the value and the way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gemel_ray.spec.errors import nearest


class Strict(BaseModel):
    """Frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line per problem: 'queries.0.fps: 0 ... (reason and the way out)'."""
    details = [detail for detail in error.errors() if not _is_echo(detail, error.errors())]
    return "\n".join(f"  {_where(detail)}: {_why(detail, model)}" for detail in details)


def _is_echo(detail: ErrorDetails, every: list[ErrorDetails]) -> bool:
    """A list counts as too short when its items are wrong; the items' own errors say it better."""
    here = detail["loc"]
    below = [other for other in every if len(other["loc"]) > len(here) and other["loc"][: len(here)] == here]
    return detail["type"] == "too_short" and bool(below)


def _where(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"]) or "(top level)"


def _why(detail: ErrorDetails, model: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown key; {nearest(str(detail['loc'][-1]), _fields_at(model, detail['loc'][:-1]))}"
    if detail["type"] == "missing":
        return "is missing; add it"
    message = detail["msg"].removeprefix("Value error, ")
    value = repr(detail.get("input"))
    told = detail["type"] == "value_error" and value in message
    return message if told or len(value) > 80 else f"{message}, got {value}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Keys that would have been valid where the unknown one stood."""
    here: list[type[BaseModel]] = [model]
    for part in location:
        # Tags of a union and list indexes appear in the location too; they lead nowhere and are skipped.
        below = [
            found
            for base in here
            if part in base.model_fields
            for found in _models_in(base.model_fields[str(part)].annotation)
        ]
        tagged = [base for base in here if str(part) in _kinds(base)]
        here = tagged or below or here
    return {name for base in here for name in base.model_fields}


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any typing form
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def without(values: Mapping[str, object], *names: str) -> dict[str, object]:
    """A copy of a mapping that lacks some keys."""
    return {key: value for key, value in values.items() if key not in names}

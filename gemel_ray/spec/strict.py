"""One strict base for everything read from files, and errors that name the field, the value and the way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gemel_ray.spec.errors import nearest

# What pydantic's errors say to somebody who writes YAML, by type of error.
_PLAIN = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": "must be a whole number",
    "literal_error": "must be {expected}",
    "string_type": "must be text (quotes make it so)",
    "string_unicode": "must be text that can be written as UTF-8",
    "string_too_short": "must not be empty",
    "too_short": "needs {min_length} or more entries",
    "tuple_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping, such as {{key: value}}",
    "model_type": "must be a mapping, such as {{key: value}}",
    "model_attributes_type": "must be a mapping, such as {{key: value}}",
    "invalid_key": "the key must be text (quotes make it so)",
}
_LONGEST_VALUE = 80


class Strict(BaseModel):
    """Frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _check_not_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


# Beside a number's type: pydantic would take true for 1, as Python does.
NotBoolean = BeforeValidator(_check_not_boolean)


def explain(error: ValidationError, model: type[BaseModel], data: object = None) -> str:
    """One line per problem: 'queries.0 (cars).fps: must be more than 0, got 0'.

    `data` is what was validated; with it, an entry of a list is shown by its name beside its place.
    """
    every = error.errors()
    details = [detail for detail in every if not _is_echo(detail, every)]
    return "\n".join(f"  {_where(detail, data)}: {_why(detail, model)}" for detail in details)


def _is_echo(detail: ErrorDetails, every: list[ErrorDetails]) -> bool:
    """A list counts as too short when its items are wrong; the items' own errors say it better."""
    here = detail["loc"]
    below = [other for other in every if len(other["loc"]) > len(here) and other["loc"][: len(here)] == here]
    return detail["type"] == "too_short" and bool(below)


def _where(detail: ErrorDetails, data: object) -> str:
    shown = []
    here = data
    for part in detail["loc"]:
        below = _below(here, part)
        name = below.get("name") if isinstance(part, int) and isinstance(below, dict) else None
        shown.append(f"{part} ({name})" if isinstance(name, str) else str(part))
        # The tag of a union is part of the location, but not of the data.
        here = here if below is None else below
    return ".".join(shown) or "(top level)"


def _below(here: object, part: int | str) -> object:
    if isinstance(here, list) and isinstance(part, int) and part < len(here):
        return here[part]
    return here.get(part) if isinstance(here, dict) else None


def _why(detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind, value, place = detail["type"], detail.get("input"), detail["loc"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(str(place[-1]), _fields_at(model, place[:-1]))}"
    if kind == "missing":
        return "is missing; add it"
    if kind == "union_tag_invalid":
        return f"unknown kind {context['tag']!r}; {nearest(str(context['tag']), _kinds_at(model, place))}"
    if kind == "union_tag_not_found":
        return f"'kind' is missing; add it ({', '.join(sorted(_kinds_at(model, place)))})"
    message = _PLAIN[kind].format(**context) if kind in _PLAIN else detail["msg"].removeprefix("Value error, ")
    if kind == "json_invalid" or (kind == "value_error" and (isinstance(value, dict) or repr(value) in message)):
        return message
    return f"{message}, got {_shown(value)}{_fraction_hint(context, value)}"


def _shown(value: object) -> str:
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= _LONGEST_VALUE else f"{shown[: _LONGEST_VALUE - 3]}..."


def _fraction_hint(context: Mapping[str, Any], value: object) -> str:
    """Percentages are the likeliest mistake where a fraction is wanted."""
    if context.get("le") == 1 and isinstance(value, int | float) and 1 < value <= 100:
        return f"; it is a fraction, so {value:g} % is written {value / 100:g}"
    return ""


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Keys that would have been valid where the unknown one stood."""
    return {name for base in _models_at(model, location) for name in base.model_fields}


def _kinds_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Kinds that would have been valid where the unknown one stood."""
    return {kind for base in _models_at(model, location) for kind in _kinds(base)}


def _models_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[type[BaseModel]]:
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
    return here


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

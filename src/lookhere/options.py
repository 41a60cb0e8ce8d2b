"""The base of every group of options, how people write them (``name=value``), and what they are told of a slip."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lookhere.errors import UsageError, nearest


class Options(BaseModel):
    """A frozen group of options; unknown names and values out of range are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


KINDS = {int: "integer", float: "number", str: "text", bool: "true|false", Path: "path", dict: "table"}
RANGES: dict[type, Callable[[Any], str]] = {
    annotated_types.Ge: lambda mark: f"≥ {mark.ge}",
    annotated_types.Gt: lambda mark: f"> {mark.gt}",
    annotated_types.Le: lambda mark: f"≤ {mark.le}",
    annotated_types.Lt: lambda mark: f"< {mark.lt}",
}
AnyOptions = TypeVar("AnyOptions", bound=Options)


@dataclass(frozen=True)
class Option:
    """One option as people see it."""

    name: str
    kind: str
    default: str
    help: str


def list_options(
    options: type[Options], prefix: str = "", branches: Mapping[str, type[Options]] | None = None
) -> Iterator[Option]:
    """Yield every option by its dotted name, with its type or range, default and help.

    Args:
        options: the group.
        prefix: what the names start with, such as ``data.``.
        branches: dotted names of groups that may be one of several, with the one to be listed.
    """
    for name, field in options.model_fields.items():
        inner = (branches or {}).get(prefix + name, field.annotation)
        if isinstance(inner, type) and issubclass(inner, Options):
            yield from list_options(inner, f"{prefix}{name}.", branches)
        else:
            default = "required" if field.is_required() else _show(field.get_default(call_default_factory=True))
            help = " ".join((field.description or "").replace("``", "").split())
            yield Option(prefix + name, allowed(field), default, help)


def read_settings(settings: Iterable[str], example: str = "training.epochs=10") -> dict[str, object]:
    """Return ``name=value`` settings as names and values, the value in TOML's notation or a bare word.

    Raises:
        UsageError: a setting without an equals sign, or one name twice.
    """
    given: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: expected name=value, for example {example}")
        if (name := name.strip()) in given:
            raise UsageError(f"--set {name}: given twice, as {given[name]!r} and {text.strip()!r}")
        given[name] = _parse(text.strip())
    return given


def put(content: dict[str, Any], name: str, value: object) -> None:
    """Put a value at its dotted name into nested mappings.

    Raises:
        UsageError: a part of the name is not a group.
    """
    *sections, last = name.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UsageError(f"{name}: there is no such option")
    content[last] = value


def build_options(options: type[AnyOptions], content: Mapping[str, Any]) -> AnyOptions:
    """Return a group of options of a nested mapping.

    Raises:
        UsageError: all that is wrong in it.
    """
    try:
        return options.model_validate(content)
    except ValidationError as error:
        known = {option.name: option for option in list_options(options)}
        raise UsageError("\n".join(dict.fromkeys(explain(problem, known) for problem in error.errors()))) from None


def explain(problem: ErrorDetails, known: Mapping[str, Option]) -> str:
    """Return one sentence on what pydantic found wrong: dotted name, value, what was expected, nearest name."""
    location = [str(part) for part in problem["loc"]]
    while len(location) > 1 and ".".join(location) not in known and ".".join(location[:-1]) in known:
        location.pop()  # pydantic names the branch of a union, such as margin.float
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        same = [option for option in known if option.rpartition(".")[2] == location[-1]]
        return f"{name}: there is no such option" + (f"; did you mean '{same[0]}'?" if same else nearest(name, known))
    if problem["type"] == "missing":
        return f"{name}: is required" + (f"; expected {known[name].kind}" if name in known else "")
    if name in known and problem["type"] != "value_error":
        return f"{name}: expected {known[name].kind}, got {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def allowed(field: FieldInfo) -> str:
    """Return the allowed values of a field in words: choices, or a type with its range."""
    members = [field.annotation, *get_args(field.annotation)]
    parts = [get_args(part)[0] if get_origin(part) is Annotated else part for part in members]
    inner = [get_args(part)[1] for part in members if get_origin(part) is Annotated]
    choices = [_show(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]
    kinds = [KINDS[part] for part in (*map(get_origin, parts), *parts) if part in KINDS]
    numbers = next((part for part in parts if get_origin(part) is tuple), None)
    if numbers is not None:
        kinds = [f"[{', '.join(KINDS.get(part, '…') for part in get_args(numbers))}]"]
    bounds = [RANGES[type(mark)](mark) for info in (field, *inner) for mark in info.metadata if type(mark) in RANGES]
    return " ".join(["|".join([*choices, *kinds[:1]]), " and ".join(bounds)]).rstrip()


def _parse(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _show(value: object) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

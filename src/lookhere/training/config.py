"""The configuration of one training: frozen options, read from TOML and ``--set``, with one dotted name for each.

A configuration is resolved once, written to the run folder, and its canonical form together with the data's hash is
the run's identity.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import tomlkit
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lookhere.backbone import BackboneOptions
from lookhere.data.manifest import DataOptions, SaliencyOptions
from lookhere.errors import UsageError, nearest
from lookhere.methods import METHODS, MethodOptions
from lookhere.options import Options

if TYPE_CHECKING:
    AnyMethod = MethodOptions
else:
    # The table is a value, so the union of its options can only be built at run time.
    AnyMethod = Annotated[Union[tuple(method.Options for method in METHODS.values())], Field(discriminator="name")]  # noqa: UP007


class TrainingOptions(Options):
    """The optimisation; defaults are the protocol of the paper and its predecessors."""

    epochs: int = Field(50, ge=1, le=100_000)
    """Passes over the training rows."""
    batch_size: int = Field(20, ge=1, le=65_536)
    """Images per step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, Adam, or AdamW."""
    learning_rate: float = Field(0.005, gt=0, le=10)
    """Step size at the first epoch."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; Adam does not use it."""
    weight_decay: float = Field(1e-6, ge=0, le=1)
    """L2 penalty (decoupled in AdamW)."""
    decay_every: int = Field(12, ge=1)
    """Epochs after which the learning rate is multiplied by ``decay``."""
    decay: float = Field(0.1, gt=0, le=1)
    """Factor on the learning rate."""
    select: Literal["val_accuracy", "val_auroc", "last"] = "val_accuracy"
    """Which epoch's weights are kept: best on ``val`` (ties go to the later), or the last. Never by a test split."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network; losses are always at least float32."""
    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads; 0 leaves it to PyTorch."""


class Config(Options):
    """Everything that decides a training."""

    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Initial weights, order of the samples and every other random choice."""
    data: DataOptions
    """Images, labels and splits."""
    saliency: SaliencyOptions = SaliencyOptions()
    """Maps of where people look."""
    backbone: BackboneOptions = BackboneOptions()
    """The network."""
    method: AnyMethod = Field(default_factory=lambda: METHODS["sage"].Options(name="sage"))
    """The training method; its options depend on its name."""
    training: TrainingOptions = TrainingOptions()
    """The optimisation."""

    def to_toml(self) -> str:
        """Return the configuration as TOML that ``load_config`` reads back."""
        return tomlkit.dumps(self.model_dump(mode="json", exclude_none=True))

    def identity(self, data_sha256: str, *, seed: bool = True) -> str:
        """Return the SHA-256 of all that decides the result: options, data and weights by content, not by place.

        Args:
            data_sha256: hash of the decoded data, which stands for the options that say where it lies.
            seed: false for the identity that runs share which differ by their seed alone.
        """
        place = {"data": {"manifest", "root", "cache", "allow_outside"}, "saliency": {"folder"}}
        content = self.model_dump(mode="json", exclude={**place, "training": {"device", "threads"}})
        if (weights := Path(self.backbone.weights)).is_file():
            content["backbone"]["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        if not seed:
            del content["seed"]
        return hashlib.sha256(json.dumps([content, data_sha256], sort_keys=True).encode()).hexdigest()


def load_config(
    file: Path | None = None, settings: Sequence[str] = (), flags: Mapping[str, object] | None = None
) -> Config:
    """Return the configuration of a TOML file, changed by ``name=value`` settings and then by flags.

    Args:
        file: TOML; none for the defaults.
        settings: ``dotted.name=value``, the value in TOML's notation or a bare word.
        flags: dotted names to values; those that are None are left out. A ``method.name`` other than the file's drops
            the options that the file gives for its own method.

    Raises:
        UsageError: all that is wrong, each with its dotted name, value, what was expected and the nearest name.
    """
    content = _read_toml(file) if file else {}
    given: dict[str, object] = {name: value for name, value in (flags or {}).items() if value is not None}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: expected name=value, for example training.epochs=10")
        given.setdefault(name.strip(), _parse(text.strip()))
    method = content.setdefault("method", {})
    if isinstance(method, dict):
        if given.get("method.name", method.get("name")) != method.get("name"):
            method.clear()
        method.setdefault("name", "sage")
    for name, value in given.items():
        _put(content, name, value)
    return build_config(content)


def build_config(content: Mapping[str, Any]) -> Config:
    """Return the configuration of a nested mapping; raises UsageError with all that is wrong in it."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        method = content.get("method")
        name = str(method.get("name")) if isinstance(method, Mapping) else "sage"
        options = {option.name: option for option in list_options(name)}
        raise UsageError("\n".join(dict.fromkeys(_explain(problem, options) for problem in error.errors()))) from None


@dataclass(frozen=True)
class Option:
    """One option as people see it."""

    name: str
    kind: str
    default: str
    help: str


def list_options(method: str) -> list[Option]:
    """Return every option of a training with a given method, by dotted name, with type or range, default and help."""
    return list(_walk(Config, "", METHODS.get(method, METHODS["sage"]).Options))


def _walk(options: type[Options], prefix: str, method: type[Options]) -> Iterator[Option]:
    for name, field in options.model_fields.items():
        inner = method if prefix + name == "method" else field.annotation
        if isinstance(inner, type) and issubclass(inner, Options):
            yield from _walk(inner, f"{prefix}{name}.", method)
        else:
            default = "required" if field.is_required() else _show(field.get_default(call_default_factory=True))
            help = " ".join((field.description or "").replace("``", "").split())
            yield Option(prefix + name, _kind(field), default, help)


def _kind(field: FieldInfo) -> str:
    """Return the allowed values of a field in words: choices, or a type with its range."""
    parts = [field.annotation, *get_args(field.annotation)]
    choices = [_show(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]
    names = {int: "integer", float: "number", str: "text", bool: "true|false", Path: "path", dict: "table"}
    kinds = [names[part] for part in (*parts, *(get_origin(part) for part in parts)) if part in names]
    ranges = {
        annotated_types.Ge: lambda mark: f"≥ {mark.ge}",
        annotated_types.Gt: lambda mark: f"> {mark.gt}",
        annotated_types.Le: lambda mark: f"≤ {mark.le}",
        annotated_types.Lt: lambda mark: f"< {mark.lt}",
    }
    bounds = [ranges[type(mark)](mark) for mark in field.metadata if type(mark) in ranges]
    return " ".join(["|".join([*choices, *kinds[:1]]), " and ".join(bounds)]).rstrip()


def _explain(problem: ErrorDetails, options: Mapping[str, Option]) -> str:
    location = [str(part) for part in problem["loc"]]
    if location[0] == "method" and len(location) > 1 and location[1] in METHODS:
        del location[1]
    while len(location) > 1 and ".".join(location) not in options and ".".join(location[:-1]) in options:
        location.pop()  # pydantic names the branch of a union, such as margin.float
    name = ".".join(location)
    if problem["type"] == "union_tag_invalid":
        value = str(problem["ctx"]["tag"])
        return f"method.name: there is no method '{value}'{nearest(value, METHODS)} (methods: {', '.join(METHODS)})"
    if problem["type"] == "extra_forbidden":
        same = [option for option in options if option.rpartition(".")[2] == location[-1]]
        return f"{name}: there is no such option" + (f"; did you mean '{same[0]}'?" if same else nearest(name, options))
    if problem["type"] == "missing":
        return f"{name}: is required" + ("; give --data MANIFEST" if name.startswith("data") else "")
    if name in options and problem["type"] != "value_error":
        return f"{name}: expected {options[name].kind}, got {problem['input']!r}"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--config: no file {file}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config: {file} cannot be read as TOML: {error}") from None


def _parse(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(content: dict[str, Any], name: str, value: object) -> None:
    *sections, last = name.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UsageError(f"{name}: there is no such option")
    content[last] = value


def _show(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

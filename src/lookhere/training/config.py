"""The configuration of one training: frozen options, read from TOML and ``--set``, with one dotted name for each.

A configuration is resolved once, written to the run folder, and its canonical form together with the data's hash is
the run's identity.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tomlkit
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lookhere import options
from lookhere.backbone import ViewMemory
from lookhere.data.manifest import DataOptions, SaliencyOptions
from lookhere.data.protocol import ProtocolOptions
from lookhere.errors import UsageError, nearest
from lookhere.methods import METHODS, MethodOptions
from lookhere.options import Option, Options, put, read_settings
from lookhere.views import ViewOptions
from lookhere.weights import BackboneOptions

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
    """Images per step, of all processes together where several share the training."""
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
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Arithmetic of the network in training; losses are always at least float32. ``auto`` measures a few steps of both
    and takes bfloat16 where it is faster, so that the result depends on the machine; it is told in result.json."""
    view_memory: ViewMemory = "high"
    """Methods with several views: ``low`` computes most of what their passes leave in memory again in the backward
    pass, with the same result: a third to a half slower, and with little more memory than one view needs."""
    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads of each process; 0 leaves it to PyTorch."""


PLACES = (
    *("data.manifest", "data.root", "data.cache", "data.allow_outside", "saliency.folder"),
    *("training.device", "training.threads", "training.view_memory"),
)
"""Options that say where things are and how they are kept, not what they are; a run's identity does not depend on
them."""


class Config(Options):
    """Everything that decides a training."""

    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Initial weights, order of the samples and every other random choice."""
    data: DataOptions
    """Images, labels and splits."""
    saliency: SaliencyOptions = SaliencyOptions()
    """Maps of where people look."""
    protocol: ProtocolOptions = ProtocolOptions()
    """Which rows train, select and test."""
    backbone: BackboneOptions = BackboneOptions()
    """The network."""
    method: AnyMethod = Field(default_factory=lambda: METHODS["sage"].Options(name="sage"))
    """The training method; its options depend on its name."""
    training: TrainingOptions = TrainingOptions()
    """The optimisation."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        then = getattr(self.method, "then", "")  # a method whose last stage is another one, whose options it holds
        name, method = (f"method.{then}", getattr(self.method, then, None)) if then else ("method", self.method)
        views = getattr(method, "views", None)
        if isinstance(views, ViewOptions):
            if views.degrade == "blur" and views.kernel // 2 >= (side := views.side(self.data.size)):
                raise ValueError(f"{name}.views.kernel: {views.kernel} does not fit images of {side} pixels")
            if views.degrade == "swap" and self.training.batch_size < 2:
                raise ValueError(f'training.batch_size: {name}.views.degrade = "swap" needs another image in the batch')
        return self

    def to_toml(self) -> str:
        """Return the configuration as TOML that ``load_config`` reads back."""
        return tomlkit.dumps(self.model_dump(mode="json", exclude_none=True))

    def identity(self, data_sha256: str, *, seed: bool = True) -> str:
        """Return the SHA-256 of all that decides the result: options, data and weights by content, not by place.

        Args:
            data_sha256: hash of the decoded data, which stands for the options that say where it lies.
            seed: false for the identity that runs share which differ by their seed alone.
        """
        content = flat(self.model_dump(mode="json"))
        for name in PLACES if seed else (*PLACES, "seed"):
            content.pop(name, None)
        if self.backbone.weights not in ("pretrained", "random"):
            file = Path(self.backbone.weights)
            content["backbone.weights"] = _file_sha256(file, file.stat().st_mtime_ns)
        return hashlib.sha256(json.dumps([content, data_sha256], sort_keys=True).encode()).hexdigest()


def load_config(
    file: Path | None = None, settings: Sequence[str] = (), flags: Mapping[str, object] | None = None
) -> Config:
    """Return the configuration of a TOML file, changed by ``name=value`` settings and by flags.

    Args:
        file: TOML; none for the defaults.
        settings: ``dotted.name=value``, the value in TOML's notation or a bare word.
        flags: dotted names to values; those that are None are left out. A ``method.name`` other than the file's drops
            the options that the file gives for its own method.

    Raises:
        UsageError: all that is wrong, each with its dotted name, value, what was expected and the nearest name.
    """
    return configure(_read_toml(file) if file else {}, settings, flags)


def configure(
    content: dict[str, Any], settings: Sequence[str] = (), flags: Mapping[str, object] | None = None
) -> Config:
    """Return the configuration of nested mappings, changed as by ``load_config``."""
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    for name, value in read_settings(settings).items():
        if given.setdefault(name, value) is not value:
            raise UsageError(f"{name}: given twice, as {given[name]!r} and by --set as {value!r}")
    method = content.setdefault("method", {})
    if isinstance(method, dict):
        if given.get("method.name", method.get("name")) != method.get("name"):
            method.clear()
        method.setdefault("name", "sage")
    for name, value in given.items():
        put(content, name, value)
    kind = METHODS.get(str(method.get("name"))) if isinstance(method, dict) else None
    if kind and kind.network:  # another backbone has to be asked for, and the method refuses it
        backbone = content.setdefault("backbone", {})
        if isinstance(backbone, dict):
            backbone.setdefault("name", kind.network)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        method = content.get("method")
        known = {option.name: option for option in list_options(str(method["name"]) if method else "sage")}
        raise UsageError("\n".join(dict.fromkeys(_explain(problem, known) for problem in error.errors()))) from None


def list_options(method: str) -> list[Option]:
    """Return every option of a training with a given method, by dotted name, with type or range, default and help."""
    return list(options.list_options(Config, branches={"method": METHODS.get(method, METHODS["sage"]).Options}))


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options as one mapping of dotted names; tables of the user's own, such as ``data.splits``, too."""
    leaves: dict[str, Any] = {}
    for name, value in section.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return leaves


@cache  # a study asks for each of its trainings
def _file_sha256(file: Path, changed: int) -> str:
    """Return the SHA-256 of a file that was last changed then."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _explain(problem: ErrorDetails, known: Mapping[str, Option]) -> str:
    location = problem["loc"]
    if problem["type"] == "union_tag_invalid":
        value = str(problem["ctx"]["tag"])
        return f"method.name: there is no method '{value}'{nearest(value, METHODS)} (methods: {', '.join(METHODS)})"
    if problem["type"] == "missing" and location[0] == "data":
        return "data.manifest: is required; give --data MANIFEST"
    if len(location) > 1 and location[0] == "method" and location[1] in METHODS:
        problem = {**problem, "loc": (location[0], *location[2:])}  # pydantic names the branch of the union
    return options.explain(problem, known)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--config: no file {file}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config: {file} cannot be read as TOML: {error}") from None

"""A plan: one TOML file whose axes multiply to the trainings of a study.

    title = "Does the kernel matter?"
    config = "paper.toml"                     # where all trainings start from; options here change it

    [training]
    epochs = 10

    [sets.iris]                               # data sets by name
    data.manifest = "iris/manifest.csv"

    [axes]                                    # the first varies slowest
    seed = [0, 1, 2]
    set = ["iris"]
    method = ["cross-entropy", "sage", { name = "sage", label = "SAGE, wide", views.kernel = 61 }]

Options have the dotted names that they have everywhere; under a method, those of the method go without ``method.``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lookhere.errors import UsageError, nearest
from lookhere.evaluation.alterations import RelianceOptions
from lookhere.evaluation.evaluate import DEFINITIONS
from lookhere.options import Options, build_options, put
from lookhere.training.config import Config, flat

SECTIONS = tuple(name for name in Config.model_fields if name != "seed")
PATHS = ("data.manifest", "data.root", "data.cache", "saliency.folder", "backbone.weights")
"""Options that may be paths, which are relative to the file they stand in."""


class Adjustment(Options):
    """Options for some of the trainings."""

    when: dict[str, Any]
    """Axes and the value, or list of values, that they must have."""
    options: dict[str, Any]
    """What is set then."""


class Number(BaseModel):
    """A published mean over seeds; its other entries are axes and their values."""

    model_config = ConfigDict(frozen=True, extra="allow")

    mean: float
    sd: float = Field(ge=0)

    @property
    def when(self) -> dict[str, Any]:
        """Axes and their values: which trainings the number is of."""
        return flat(self.model_extra or {})


class Published(Options):
    """Numbers that the report shows beside those measured."""

    source: str
    """Authors, year, table."""
    metric: str = "auroc"
    """The metric that they are of."""
    kind: str = "all"
    """Whose images: all, seen, unseen, or "type: NAME"."""
    split: str | None = None
    """The test split; by default the first."""
    n: int = Field(ge=2)
    """Trainings behind each number."""
    numbers: tuple[Number, ...] = Field(min_length=1)
    """``{ method = "sage", set = "iris", mean = 0.945, sd = 0.012 }`` and so on."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in DEFINITIONS:
            raise ValueError(f"there is no metric '{metric}'{nearest(metric, DEFINITIONS)}")
        return metric


class StudyReliance(RelianceOptions):
    """``[reliance]``: how reliance on the salient region is measured after each training (docs/reliance.md)."""

    measure: bool = True
    """Measure it wherever test images have maps."""
    bootstrap: int = Field(1000, ge=0, le=100_000)
    """Resamples for the intervals; 0 gives none."""

    @property
    def options(self) -> RelianceOptions:
        """How images are altered."""
        return RelianceOptions(**self.model_dump(include=set(RelianceOptions.model_fields)))


class PlanFile(Options):
    """What a plan may hold."""

    title: str = Field(min_length=1)
    """What the study is about, in a line."""
    config: Path | None = None
    """Configuration that all trainings start from."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Options of ``[data]`` that differ from it; likewise the other sections."""
    saliency: dict[str, Any] = Field(default_factory=dict)
    protocol: dict[str, Any] = Field(default_factory=dict)
    backbone: dict[str, Any] = Field(default_factory=dict)
    method: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By the name of a data set, its ``data.…`` and ``saliency.…`` options."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """``method``, ``backbone``, ``set``, ``seed`` or any option, each with a list of values."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By the name of a method, options that it is always trained with."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Axes with values whose trainings are left out."""
    adjust: tuple[Adjustment, ...] = ()
    """Options for some of the trainings."""
    reliance: StudyReliance = StudyReliance()
    """What is measured after each training, beside its test."""
    published: tuple[Published, ...] = ()
    """Numbers to compare with."""


def read_plan_file(path: Path, reliance: Mapping[str, Any] | None = None) -> tuple[PlanFile, dict[str, Any]]:
    """Return what a plan file holds, and the nested options that all of its trainings start from.

    Args:
        path: the file.
        reliance: options of ``[reliance]`` by dotted name, which go over the file's.

    Raises:
        UsageError: the file or the configuration that it names cannot be read; unknown entries.
    """
    content = _read_toml(path)
    for name, value in (reliance or {}).items():
        put(content, name, value)
    file = build_options(PlanFile, content)
    base: dict[str, Any] = {}
    if file.config:
        there = path.parent / file.config
        base = nested(placed(flat(_read_toml(there)), there.parent))
    if "name" in file.method and file.method["name"] != base.get("method", {}).get("name"):
        base["method"] = {}
    if file.method and "name" not in base.get("method", {}) | file.method:
        raise UsageError("method: options of one method; give its name here, or put them under [methods.NAME]")
    for section in SECTIONS:
        for name, value in placed(flat({section: getattr(file, section)}), path.parent).items():
            put(base, name, value)
    return file, base


def placed(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return options by dotted name, with relative paths taken from ``folder``."""
    return {
        name: str(folder / value)
        if name in PATHS and isinstance(value, str) and value not in ("pretrained", "random")
        else value
        for name, value in options.items()
    }


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by dotted name as nested mappings."""
    content: dict[str, Any] = {}
    for name, value in options.items():
        put(content, name, value)
    return content


def method_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they stand under a method by their full dotted names."""
    return {name if name.split(".")[0] in SECTIONS else f"method.{name}": value for name, value in options.items()}


def as_list(value: Any) -> Sequence[Any]:
    """Return a list as it is, and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        hint = "; put the dotted names of axes in quotes" if "Cannot" in str(error) else ""
        raise UsageError(f"{path}: cannot be read as TOML: {error}{hint}") from None

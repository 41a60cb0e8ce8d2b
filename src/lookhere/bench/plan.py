"""A plan resolved: every training of a study with its whole configuration, before anything runs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lookhere.bench.axes import Choice, check_axes, check_conditions, choose_methods, name_sets, read_axes, read_only
from lookhere.bench.plan_file import (
    PlanFile,
    Published,
    StudyReliance,
    as_list,
    method_options,
    placed,
    read_plan_file,
)
from lookhere.errors import UsageError
from lookhere.options import read_settings
from lookhere.training.config import Config, configure, flat
from lookhere.weights import BackboneOptions, resolve_weights

SHOWN = 20
"""Problems that are told at once."""
OPTION = {"method": "method.name", "backbone": "backbone.name"}
"""The options that short names of axes stand for."""
AVERAGED = ("seed", "protocol.fold")
"""Axes whose trainings the report averages over."""


@dataclass(frozen=True)
class Entry:
    """One training of a plan."""

    assignment: dict[str, Any]
    """Axes to values; a method by its label."""
    config: Config

    @property
    def label(self) -> str:
        """The values in words, as in ``sage · resnet50 · iris · sigma 5 · seed 0``."""
        seed = [f"seed {self.assignment['seed']}"] if "seed" in self.assignment else []
        return " · ".join([self.kind, *self._options(self.assignment), *seed])

    @property
    def row(self) -> str:
        """What a report calls those that it averages over, on each data set, as in ``sage · resnet50 · sigma 5``."""
        short = [str(self.assignment[axis]) for axis in ("method", "backbone") if axis in self.assignment]
        apart = {axis: value for axis, value in self.assignment.items() if axis not in AVERAGED}
        return " · ".join([*short, *self._options(apart)]) or self.config.method.name

    @staticmethod
    def _options(axes: Mapping[str, Any]) -> list[str]:
        return [f"{axis.rpartition('.')[2]} {value}" for axis, value in axes.items() if "." in axis]

    @property
    def kind(self) -> str:
        """Method, backbone and data set, as far as they are axes, in words."""
        short = [str(self.assignment[axis]) for axis in ("method", "backbone", "set") if axis in self.assignment]
        return " · ".join(short) or self.config.method.name

    def matches(self, wanted: Mapping[str, Any]) -> bool:
        """Has the training, on each axis, the wanted value or one of those wanted?"""
        return _matches(self.assignment, self.config.method.name, wanted)


@dataclass(frozen=True)
class Plan:
    """All trainings of a study, in the order in which they are run."""

    path: Path
    title: str
    entries: tuple[Entry, ...]
    axes: dict[str, list[Any]] = field(default_factory=dict)
    reliance: StudyReliance = field(default_factory=StudyReliance)
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()
    """What one might not see in the file, a sentence each."""
    missing: dict[str, str] = field(default_factory=dict)
    """Data sets whose manifest is not there, with what to do about it."""


def read_plan(path: Path, *, data: Sequence[str] = (), only: Sequence[str] = (), settings: Sequence[str] = ()) -> Plan:
    """Return the plan of a TOML file; ``plan_file`` says what it may hold.

    Args:
        path: the file.
        data: ``NAME=PATH``, manifests of the plan's data sets; ``PATH`` alone for a plan without an axis ``set``.
        only: ``AXIS=VALUE``, the values of an axis that are kept; repeatable.
        settings: ``dotted.name=value``, for all trainings; ``reliance.…`` for what is measured after each.

    Raises:
        UsageError: all options that are wrong, with their dotted and the nearest names. A manifest that is not there
            is no error here, see ``Plan.missing``.
    """
    try:
        given = read_settings(settings)
        reliance = {name: given.pop(name) for name in list(given) if name.startswith("reliance.")}
        file, base = read_plan_file(path, reliance)
        axes, notes = read_axes(file)
        choices = choose_methods(axes.get("method", [base.get("method", {}).get("name", "sage")]), file.methods)
        notes += check_axes(axes, choices, file)
        sets, missing = name_sets(file, axes, base, path.parent, data)
        shown = axes | ({"method": [choice.label for choice in choices]} if "method" in axes else {})
        check_conditions(file, shown, choices)
        kept = read_only(only, shown, choices)
        entries = _entries(axes, choices, sets, file, base, path.parent, given)
        notes += _check_published(file.published, entries, shown)
    except UsageError as error:
        lines = (line if str(path) in line else f"{path}: {line}" for line in str(error).splitlines())
        raise UsageError("\n".join(lines)) from None
    chosen = tuple(entry for entry in entries if entry.matches(kept))
    if not chosen:
        raise UsageError(f"{path}: no training is left" + (f" by --only {' '.join(only)}" if only else ""))
    used = {entry.assignment.get("set", "") for entry in chosen}
    missing = {name: what for name, what in missing.items() if name in used}
    return Plan(path, file.title, chosen, shown, file.reliance, file.published, tuple(notes), missing)


def _entries(
    axes: Mapping[str, list[Any]],
    choices: Sequence[Choice],
    sets: Mapping[str, dict[str, Any]],
    file: PlanFile,
    base: dict[str, Any],
    folder: Path,
    settings: Mapping[str, Any],
) -> list[Entry]:
    """Return all trainings but those excluded."""
    problems: dict[str, None] = {}
    entries = []
    names: set[str] = set()
    for choice, assignment in _product(axes, choices):
        if any(_matches(assignment, choice.name, flat(wanted)) for wanted in file.exclude):
            continue
        sources = [
            (f"sets.{assignment.get('set', '')}", sets[assignment.get("set", "")]),
            (f"method {choice.label}", placed(choice.options, folder)),
            *(
                (f"adjust {number}", placed(method_options(flat(one.options)), folder))
                for number, one in enumerate(file.adjust, start=1)
                if _matches(assignment, choice.name, flat(one.when))
            ),
            ("--set", settings),
        ]
        values = {OPTION.get(axis, axis): value for axis, value in assignment.items() if axis not in ("method", "set")}
        try:
            options = _merged(sources, values)
            entry = Entry(assignment, configure(copy.deepcopy(base), (), options | placed(values, folder)))
            if (name := entry.config.backbone.name) not in names:
                names.add(name)
                resolve_weights(BackboneOptions(name=name, weights="random"))  # only the name is looked up
        except UsageError as error:
            problems |= dict.fromkeys(str(error).splitlines())
            if len(problems) >= SHOWN:
                break
        else:
            entries.append(entry)
    if problems:
        raise UsageError("\n".join(list(problems)[:SHOWN]))
    return entries


def _product(axes: Mapping[str, list[Any]], choices: Sequence[Choice]) -> Iterator[tuple[Choice, dict[str, Any]]]:
    """Yield the product of the axes; one that does not apply to a method is left out for it."""
    seen = set()
    for values in itertools.product(*(choices if axis == "method" else axes[axis] for axis in axes)):
        whole = dict(zip(axes, values, strict=True))
        choice = whole.get("method", choices[0])
        assignment = {
            axis: choice.label if axis == "method" else value for axis, value in whole.items() if choice.takes(axis)
        }
        if (key := repr(assignment)) not in seen:
            seen.add(key)
            yield choice, assignment


def _merged(sources: Sequence[tuple[str, Mapping[str, Any]]], axes: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of several sources, a later one over an earlier; none may set what is an axis."""
    options: dict[str, Any] = {}
    for where, given in sources:
        if both := [name for name in given if name in axes]:
            raise UsageError(f"{where}: {both[0]} is an axis, so it cannot be set as well")
        options |= given
    return options


def _matches(assignment: Mapping[str, Any], method: str, wanted: Mapping[str, Any]) -> bool:
    for axis, values in wanted.items():
        mine = [assignment[axis]] if axis in assignment else []
        mine += [method] if axis == "method" else []
        if not any(value in mine for value in as_list(values)):
            return False
    return True


def _check_published(published: Sequence[Published], entries: Sequence[Entry], axes: Mapping[str, Any]) -> list[str]:
    """Return a note if numbers are of no training here; raise UsageError if one is of several groups of them."""
    lost = 0
    for one in published:
        for number in one.numbers:
            if other := [axis for axis in number.when if axis not in axes]:
                raise UsageError(f"published, {one.source}: '{other[0]}' is not an axis of this plan")
            found = [entry.assignment for entry in entries if entry.matches(number.when)]
            groups = {repr({axis: value for axis, value in chosen.items() if axis not in AVERAGED}) for chosen in found}
            if len(groups) > 1:
                where = f"published, {one.source}, {', '.join(map(str, number.when.values()))}"
                raise UsageError(f"{where}: fits {len(groups)} groups of trainings; name more axes")
            lost += not groups
    return [f"published: {lost} of the numbers are of no training in this plan"] if lost else []

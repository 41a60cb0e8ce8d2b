"""What a plan multiplies: its axes, the methods and data sets among them, and conditions on their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lookhere.bench.plan_file import PlanFile, as_list, method_options, placed
from lookhere.errors import UsageError, nearest
from lookhere.methods import METHODS
from lookhere.training.config import PLACES, flat, list_options

SHORT = ("method", "backbone", "set", "seed")
NO_AXIS = {
    **dict.fromkeys(PLACES, "it changes no result"),
    "method.name": "write 'method'",
    "backbone.name": "write 'backbone'",
    "data.manifest": "name data sets under [sets], and list their names as axis 'set'",
}
"""Options that cannot be an axis, and why."""


@dataclass(frozen=True)
class Choice:
    """A method as the plan lists it."""

    name: str
    label: str
    options: dict[str, Any]
    """By dotted name; ``method.name`` among them."""

    def takes(self, axis: str) -> bool:
        """Does the axis apply to this method?"""
        method = METHODS[self.name]
        if axis == "backbone":
            return method.network is None
        if axis.startswith("saliency."):
            return method.guides != "nothing"
        return not axis.startswith("method.") or axis in _options(self.name)


def read_axes(file: PlanFile) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the axes of a plan, each value once, and a note on each one that lists a value twice."""
    axes, notes = {}, []
    for name, values in flat(file.axes).items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"axes.{name}: expected a list of one value or more, got {values!r}")
        axes[name] = [value for i, value in enumerate(values) if value not in values[:i]]
        if len(axes[name]) < len(values):
            notes.append(f"axes.{name}: a value is listed twice; its trainings are made once")
    return axes, notes


def choose_methods(listed: Sequence[Any], options: Mapping[str, dict[str, Any]]) -> list[Choice]:
    """Return the methods of a plan.

    Args:
        listed: names, or tables of ``name``, ``label`` and options.
        options: ``[methods.NAME]``.
    """
    for name in options:
        _check_method("methods", name)
    choices: list[Choice] = []
    for entry in listed:
        table = {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else {}
        name = table.pop("name", None)
        if not isinstance(name, str):
            raise UsageError(f'axes.method: expected names, or tables such as {{ name = "sage" }}, got {entry!r}')
        _check_method("axes.method", name)
        label = str(table.pop("label", name))
        if label in [choice.label for choice in choices] or (label != name and label in METHODS):
            raise UsageError(f"axes.method: '{label}' stands for two methods; give each a label of its own")
        network = {"backbone.name": METHODS[name].network} if METHODS[name].network else {}
        given = method_options(flat(options.get(name, {}))) | method_options(flat(table))
        choices.append(Choice(name, label, {"method.name": name, **network, **given}))
    return choices


def check_axes(axes: Mapping[str, list[Any]], choices: Sequence[Choice], file: PlanFile) -> list[str]:
    """Return notes on the axes that some of the methods do not have.

    Raises:
        UsageError: an axis that is no option, or that none of the methods has.
    """
    known = {*SHORT, *(name for choice in choices for name in _options(choice.name))}
    notes = []
    for axis in axes:
        if axis in NO_AXIS:
            raise UsageError(f"axes.{axis}: is no axis; {NO_AXIS[axis]}")
        if axis not in known:
            others = [name for name in METHODS if axis in _options(name)]
            hint = f" of these methods ({', '.join(others)})" if others else nearest(axis, known)
            raise UsageError(f"axes.{axis}: there is no such option{hint}")
        lacking = [choice.label for choice in choices if not choice.takes(axis)]
        if len(lacking) == len(choices):
            raise UsageError(f"axes.{axis}: applies to none of the methods")
        if lacking:
            notes.append(f"axes.{axis}: does not apply to {', '.join(lacking)}, trained once without it")
    if file.method and file.method.get("name") not in (None, *(choice.name for choice in choices)):
        raise UsageError(f"method.name: '{file.method['name']}' is not in axes.method; use [methods.NAME] for options")
    return notes


def name_sets(
    file: PlanFile, axes: Mapping[str, list[Any]], base: Mapping[str, Any], folder: Path, data: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the options of each data set, and for each whose manifest is not there what to do about it.

    Args:
        file: the plan.
        axes: its axes; a plan without axis ``set`` has one set, named "".
        base: what all trainings start from.
        folder: the plan's.
        data: ``NAME=PATH`` of the command line, or ``PATH`` where there is no axis ``set``.
    """
    names = axes.get("set", [""])
    for name in [name for name in names if name and name not in file.sets]:
        raise UsageError(f"axes.set: there is no [sets.{name}]{nearest(str(name), file.sets)}")
    given: dict[str, Path] = {}
    for text in data:
        name, equals, path = text.partition("=") if names != [""] else ("", "=", text)
        if not equals or (name and name not in file.sets):
            raise UsageError(f"--data {text}: expected NAME=MANIFEST, with NAME one of {', '.join(file.sets)}")
        given[name] = Path(path).absolute()
    sets, missing = {}, {}
    for name in names:
        options = placed(flat(file.sets.get(name, {})), folder)
        if wrong := [option for option in options if option.split(".")[0] not in ("data", "saliency")]:
            known = [option for option in _options("sage") if option.startswith(("data.", "saliency."))]
            raise UsageError(f"sets.{name}: {wrong[0]} is no option of data or saliency{nearest(wrong[0], known)}")
        where, flag = (f"sets.{name}", f"--data {name}=MANIFEST") if name else ("data", "--data MANIFEST")
        if name in given:
            options["data.manifest"] = str(given[name])
        path = options.get("data.manifest", base.get("data", {}).get("manifest"))
        if path is None:
            missing[name] = f"{where}: has no manifest; give {flag}"
            options["data.manifest"] = f"{name or 'data'}.csv"
        elif not Path(path).is_file():
            missing[name] = f"{where}: no file {path}; give {flag}"
        sets[name] = options
    return sets, missing


def check_conditions(file: PlanFile, axes: Mapping[str, list[Any]], choices: Sequence[Choice]) -> None:
    """Raise UsageError if a condition of a plan names what is no axis, or a value that its axis does not list."""
    for number, wanted in enumerate(file.exclude, start=1):
        _check_condition(f"exclude {number}", flat(wanted), axes, choices)
    for number, one in enumerate(file.adjust, start=1):
        _check_condition(f"adjust {number}", flat(one.when), axes, choices)


def read_only(only: Sequence[str], axes: Mapping[str, list[Any]], choices: Sequence[Choice]) -> dict[str, list[Any]]:
    """Return the condition of ``AXIS=VALUE`` settings; one axis twice means either value."""
    wanted: dict[str, list[Any]] = {}
    for text in only:
        axis, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--only {text}: expected AXIS=VALUE, for example seed=0")
        found = [one for one in axes.get(axis, []) if str(one) == value]
        wanted.setdefault(axis, []).extend(found or [value])
    _check_condition("--only", wanted, axes, choices)
    return wanted


def _check_condition(
    where: str, wanted: Mapping[str, Any], axes: Mapping[str, list[Any]], choices: Sequence[Choice]
) -> None:
    for axis, values in wanted.items():
        if axis not in axes:
            raise UsageError(f"{where}: '{axis}' is not an axis of this plan{nearest(axis, axes)}")
        listed = [*axes[axis], *(choice.name for choice in choices if axis == "method")]
        for value in [value for value in as_list(values) if value not in listed]:
            raise UsageError(f"{where}: {axis} {value!r} is not in axes.{axis}{nearest(str(value), map(str, listed))}")


def _check_method(where: str, name: str) -> None:
    if name not in METHODS:
        known = f"{nearest(name, METHODS)} (methods: {', '.join(METHODS)})"
        raise UsageError(f"{where}: there is no method '{name}'{known}")


@cache
def _options(method: str) -> frozenset[str]:
    return frozenset(option.name for option in list_options(method))

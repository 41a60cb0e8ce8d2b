"""Finished trainings gathered into groups to average over, each with a label that says what sets it apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lookhere.bench.store import Run
from lookhere.training.config import PLACES, flat

BASELINE = "cross-entropy"
"""The method that others are compared with, where it is there."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only by their seed and their fold of one cross-validation, in the order of both."""

    label: str
    runs: tuple[Run, ...] = field(repr=False)
    row: str = ""
    """The label without what it tells of the data."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that any seed has, ascending; none without cross-validation."""
        return tuple(sorted({run.fold for run in self.runs if run.fold is not None}))

    @property
    def firsts(self) -> tuple[Run, ...]:
        """The first run of every fold, or the first run: together they test every image once."""
        return tuple({run.trial.fold: run for run in reversed(self.runs)}.values())

    @property
    def test_ratio(self) -> float:
        """Test images for each training image, in all folds together; 0 without cross-validation."""
        if not self.folds:
            return 0.0
        counts = [run.result["data"]["counts"] for run in self.firsts]
        return float(sum(count["test"] for count in counts) / sum(count["train"] for count in counts))

    @cached_property
    def data(self) -> str:
        """The identity of the data and, for a cross-validation, of how it is divided."""
        first = self.runs[0]
        if first.fold is None:
            return first.data_sha256
        division = {name: value for name, value in first.config["protocol"].items() if name != "fold"}
        return f"{first.result['data']['whole_sha256']} {json.dumps(division, sort_keys=True)}"

    @property
    def data_name(self) -> str:
        """What people call the data: the folder of its manifest."""
        return str(self.result["data"].get("name"))

    @property
    def result(self) -> dict[str, Any]:
        """The result of the first run, for what all have in common."""
        return self.runs[0].result

    @cached_property
    def options(self) -> dict[str, Any]:
        """The configuration by dotted name, without what the runs differ in."""
        varied = ("seed", "protocol.fold") if self.folds else ("seed",)
        return {name: value for name, value in flat(self.runs[0].config).items() if name not in varied}


def groups(runs: Sequence[Run], *, tell_data: bool = True, rows: Mapping[str, str] | None = None) -> list[Group]:
    """Gather the runs that differ only by seed and fold, cross-entropy first, then in the order they are given.

    The label of a group is its method, followed by what sets it apart: backbone and data where the groups differ in
    them, and the options in which groups of the same method differ, as in ``sage (batch_norm=joint)``. Data of one name
    are told apart by the protocol, as in ``sage (type=print)``, or else by their identity.

    Args:
        runs: finished runs.
        tell_data: false leaves the names of data sets out of the labels, which then are alike on all of them.
        rows: by the name of a run folder, what a plan calls the group without its data; by default the options say it.
    """
    rows = rows or {}
    by_group: dict[str, list[Run]] = {}
    for run in runs:
        by_group.setdefault(run.result["group"], []).append(run)
    unlabelled = [Group("", tuple(sorted(members, key=lambda run: run.trial))) for members in by_group.values()]
    unlabelled.sort(key=lambda group: group.result["method"] != BASELINE)
    kinds: dict[tuple[str, str, str], list[Group]] = {}
    for group in unlabelled:
        kinds.setdefault(_kind(group), []).append(group)
    apart = {kind: [name for name in differing(alike) if name not in PLACES] for kind, alike in kinds.items()}
    data = _data_labels(unlabelled, tell_data)
    several = len({group.result["backbone"] for group in unlabelled}) > 1
    labels = []
    for group in unlabelled:
        given = {rows.get(run.folder.name) for run in group.runs}
        backbone = [group.result["backbone"]] if several else []
        options = [f"{_short(name)}={group.options.get(name, 'unset')}" for name in apart[_kind(group)]]
        if len(given) == 1 and (name := given.pop()):
            labels.append((_label(name, data[group.data]), name))
        else:
            method = group.result["method"]
            whole = [*backbone, *data[group.data], *options]
            labels.append((_label(method, whole), _label(method, [*backbone, *options])))
    told = [(label, None if tell_data else one.data_name) for (label, _), one in zip(labels, unlabelled, strict=True)]
    counts = Counter(told)
    found = []
    for (label, row), key, group in zip(labels, told, unlabelled, strict=True):
        # What no option tells, such as weights that changed in their file, the identity does.
        shown = label if counts[key] == 1 else f"{label} [{group.result['group'][:8]}]"
        found.append(Group(shown, group.runs, row))
    return found


def _label(name: str, parts: Sequence[str]) -> str:
    return f"{name} ({', '.join(dict.fromkeys(parts))})" if parts else name


def _data_labels(everyone: Sequence[Group], tell_names: bool) -> dict[str, list[str]]:
    """Return for each data what tells it from the others, or from those of its name; nothing where none is like it."""
    named: dict[str, list[Group]] = {}
    for group in {group.data: group for group in everyone}.values():
        named.setdefault(group.data_name, []).append(group)
    labels = {}
    for name, alike in named.items():
        protocol = [option for option in differing(alike) if option.startswith("protocol.")]
        told = [tuple(f"{_short(n)}={g.options[n]}" for n in protocol if n in g.options) for g in alike]
        for group, mine in zip(alike, told, strict=True):
            own = [*([name] if tell_names and len(named) > 1 else []), *mine]
            labels[group.data] = own if told.count(mine) == 1 else [f"data {group.data[:8]}"]
    return labels


def _short(option: str) -> str:
    """Return an option's last name, unless it could be taken for the seed of the training."""
    return option if option.endswith(".seed") else option.rsplit(".", 1)[-1]


def _kind(group: Group) -> tuple[str, str, str]:
    return group.result["method"], group.result["backbone"], group.data


def differing(several: Sequence[Group]) -> list[str]:
    """Return the dotted names of the options that are not the same in all groups, in alphabetical order."""
    names = sorted({name for group in several for name in group.options})
    return [name for name in names if len({repr(group.options.get(name)) for group in several}) > 1]

"""What the columns of a manifest say (splits, classes, weights), and which of it cannot be right."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lookhere.data.table import SPLIT_NAMES, UNUSED, Table, counted, is_split
from lookhere.errors import nearest

# fmt: off
NEGATIVES = frozenset({
    "real", "live", "bona fide", "bonafide", "genuine", "authentic", "normal", "free", "healthy", "negative", "benign",
    "good", "ok", "clean", "no finding", "0",
})
# fmt: on
EXPECTED_SPLIT = "expected train, val or a name that starts with test"


def read_splits(values: list[str], renames: dict[str, str], default: str, table: Table) -> np.ndarray:
    """Return the splits in their standard names, renamed where asked; an empty one becomes ``default``."""

    def standard(value: str) -> str:
        name = value.strip().casefold()
        return SPLIT_NAMES.get(name, name)

    renamed = {standard(old): standard(new) for old, new in renames.items()}
    for old, new in renames.items():
        if not is_split(new):
            table.overall(f"data.splits renames '{old}' to '{new}'; {EXPECTED_SPLIT}")
    found = {value: standard(value) or default for value in set(values)}
    for old in renamed.keys() - found.values():
        table.warnings.append(f"{table.path}: data.splits renames '{old}', a split that no row has")
    names = {value: renamed.get(name, name) for value, name in found.items()}
    wrong = {value for value, name in names.items() if not is_split(name)}
    for i, value in enumerate(values):
        if value in wrong:
            hint = nearest(value.strip().lower(), ["train", "val", "test"])
            table.at(i, "split", f"'{value}' is no split; {EXPECTED_SPLIT}{hint}")
    return np.array([names[value] for value in values], dtype=np.str_)


def check_splits(split: np.ndarray, need_val: bool, table: Table) -> None:
    """Note a missing train or val split."""
    found = Counter(split.tolist())
    shown = ", ".join(f"{name} ({counted(count, 'row')})" for name, count in sorted(found.items()))
    if not found["train"]:
        table.overall(f"no train rows; found {shown}; add some, or rename a split with data.splits")
    if need_val and not found["val"]:
        rename = 'rename a split (data.splits = {test = "val"})'
        table.overall(
            f"no val rows, on which models are selected; found {shown}; add some, {rename}, "
            'or set training.select = "last"'
        )


def read_classes(
    labels: list[str], split: np.ndarray, given: Sequence[str] | None, training: bool, table: Table
) -> tuple[str, ...]:
    """Return the classes, and note labels that are unknown, or look like a slip: another case, alone, not in train."""
    first: dict[str, int] = {}
    for i, name in enumerate(labels):
        first.setdefault(name, i)
    first.pop("", None)
    in_train = Counter(name for name, where in zip(labels, split.tolist(), strict=True) if name and where == "train")
    names = tuple(given) if given is not None else tuple(sorted(in_train if training and in_train else first))
    variants: dict[str, list[str]] = defaultdict(list)
    for name in {**dict.fromkeys(names), **first}:
        variants[name.strip().casefold()].append(name)
    alone = {spelt[0] for spelt in variants.values() if len(spelt) == 1}
    known = ", ".join(f"'{name}'" for name in names)
    if given is not None:
        same = {name.strip().casefold(): name for name in names}
        hint = {name: nearest(same.get(name.strip().casefold(), name), names) for name in first.keys() - set(names)}
        for i, name in enumerate(labels):
            if name in hint:
                table.at(i, "label", f"'{name}' is unknown; expected {known}{hint[name]}")
    else:
        count = Counter(labels)
        for spelt in (spelt for spelt in variants.values() if len(spelt) > 1):
            shown = " and ".join(f"'{name}' ({counted(count[name], 'row')})" for name in spelt)
            rarest = min(spelt, key=lambda name: count[name])
            table.at(first[rarest], "label", f"{shown} differ in case or spaces only; expected one spelling")
        for name in (name for name in first if name in alone and name not in names):
            rows = counted(count[name], "row")
            what = f"'{name}' ({rows}) does not occur in train; expected {known}{nearest(name, names)}"
            table.at(first[name], "label", what)
    if training:
        if len(in_train) == 1:
            table.overall(f"column label: one class in train, '{next(iter(in_train))}'; expected two or more")
        found = ", ".join(f"{name} ({counted(in_train[name], 'row')})" for name in names)
        for name in (name for name, rows in in_train.items() if rows == 1 and name in alone and len(in_train) > 1):
            meant = nearest(name, (other for other in names if other != name))
            lone = f"'{name}' is the only train row of its class; expected two or more{meant}"
            table.at(first[name], "label", f"{lone} ({len(names)} classes found: {found})")
    return names


def positive_class(names: tuple[str, ...], asked: str | None, fixed: bool, table: Table) -> tuple[str, str]:
    """Return the positive class and why it is that one."""
    if asked is not None and names:
        if asked not in names:
            known = ", ".join(f"'{name}'" for name in names)
            table.overall(f"data.positive is '{asked}', not a class; expected one of {known}{nearest(asked, names)}")
        elif fixed and asked != names[-1]:
            table.overall(f"data.positive is '{asked}'; expected '{names[-1]}', the positive class of the model")
        return asked, "set as data.positive"
    if not names:
        return "", "no labels"
    if fixed:
        return names[-1], "the positive class of the model"
    others = [name for name in names if re.sub(r"[\s_-]+", " ", name.casefold()).strip() not in NEGATIVES]
    if len(others) == 1:
        return others[0], "the only one that is not a usual name of the negative class"
    return (others or list(names))[-1], "last in alphabetical order (set data.positive to choose)"


def check_repeats(images: list[str], labels: list[str], split: np.ndarray, table: Table) -> None:
    """Note images with two labels, and images of train or val that are in another split too (leakage)."""
    first: dict[str, int] = {}
    repeats = []
    for i, image in enumerate(images):
        j = first.setdefault(image, i)
        if j == i or not image:
            continue
        repeats.append((i, j))
        there = f"in row {table.line[j]}"
        if labels[i] != labels[j]:
            what = f"'{image}' is '{labels[i]}' here and '{labels[j]}' {there}; expected one label"
            table.at(i, "label", what)
        # Lists of different attacks often share their bona fide images: two test splits may overlap.
        if split[i] != split[j] and not (split[i].startswith("test") and split[j].startswith("test")):
            table.at(i, "split", f"'{image}' is in {split[i]} here and in {split[j]} {there}; expected one split")
    if repeats:
        i, j = repeats[0]
        also = f"row {table.line[i]} that of row {table.line[j]}"
        table.warnings.append(f"{table.path}: {counted(len(repeats), 'row')} with the image of an earlier one ({also})")


def check_groups(groups: list[str], split: np.ndarray, table: Table) -> None:
    """Warn of groups (subjects, patients) that are both in train and in another split."""
    table.warnings.extend(shared_groups(table.path, groups, split))


def shared_groups(path: Path, groups: list[str], split: np.ndarray) -> list[str]:
    """Return a sentence for each split that shares groups (subjects, patients) with train."""
    members: dict[str, set[str]] = defaultdict(set)
    for name, where in zip(groups, split.tolist(), strict=True):
        members[where].add(name)
    found = []
    for where in sorted(members.keys() - {"train", UNUSED}):
        shared = sorted((members[where] & members["train"]) - {""})
        if shared:
            what = f"in both train and {where}: {counted(len(shared), 'group')}, such as '{shared[0]}'"
            found.append(f"{path}, column group: {what}")
    return found


def read_weights(values: list[str], table: Table) -> np.ndarray:
    """Return the weights as float64; an empty one is 1."""
    weights = np.ones(len(values))
    for i, text in enumerate(values):
        if text:
            try:
                weights[i] = float(text)
            except ValueError:
                weights[i] = math.nan
            if not 0 <= weights[i] < math.inf:
                table.at(i, "weight", f"'{text}'; expected a number of at least 0")
    return weights

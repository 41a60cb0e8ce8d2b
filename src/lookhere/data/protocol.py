"""Protocols: which rows train, select and test, decided anew from the manifest's columns without another file.

Leaving one type out is the open-set test of presentation attack detection (VISER: one of seven attack types is never
seen in training). Folds by group are cross-validation in which no subject, patient or source is on two sides. A share
of the labels tells what an annotation is worth. All is decided by the manifest and the protocol alone, and not by the
training's seed, so that trainings of all seeds and methods see the same rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lookhere.data.columns import shared_groups
from lookhere.data.findings import counted
from lookhere.data.manifest import Manifest
from lookhere.data.table import UNUSED
from lookhere.errors import DataError, nearest
from lookhere.options import Options


class ProtocolOptions(Options):
    """Which rows train, select and test, where that is not what the manifest says."""

    kind: Literal["fixed", "leave-type-out", "group-folds"] = "fixed"
    """The manifest's splits, one type for the test alone (open set), or cross-validation that divides no group."""
    type: str | None = None
    """Type (attack, disease, generator) whose rows leave-type-out takes out of train and val and puts into test."""
    folds: int = Field(5, ge=3, le=100)
    """Folds of group-folds, alike in classes and types: one is test, the next one val, the others train."""
    fold: int = Field(0, ge=0, le=99)
    """Which of the folds is test, counted from 0."""
    pool: Literal["train", "all"] = "train"
    """Rows that group-folds divides: those of train and val, the test rows being left out, or all."""
    label_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training rows that is used, in proportion to classes and types; groups are in or out as a whole, and
    a smaller share lies within a larger one."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Of folds and shares. It is not the training's seed, so that all seeds train and test on the same rows."""

    @model_validator(mode="after")
    def _check(self) -> ProtocolOptions:
        if self.kind == "leave-type-out" and not self.type:
            raise ValueError('kind = "leave-type-out" needs protocol.type, the type to leave out')
        if self.kind != "leave-type-out" and self.type is not None:
            raise ValueError(f'type = "{self.type}" is for protocol.kind = "leave-type-out"')
        if self.kind != "group-folds" and self.fold:
            raise ValueError(f'fold = {self.fold} is for protocol.kind = "group-folds"')
        if self.fold >= self.folds:
            raise ValueError(f"fold = {self.fold} of {self.folds}; expected 0 … {self.folds - 1}")
        return self

    @property
    def makes_val(self) -> bool:
        """Does the protocol make the split val itself, so that the manifest need not have one?"""
        return self.kind == "group-folds"


def apply_protocol(manifest: Manifest, options: ProtocolOptions) -> Manifest:
    """Return a manifest with the splits that a protocol assigns; rows that it does not use are in split ``unused``.

    The order of the rows makes no difference. Rows that show the same image stay together, whatever their groups.

    Raises:
        DataError: a type that no row has, more folds than groups, or a class or a split that is left without rows.
    """
    split = manifest.split
    if options.kind == "leave-type-out":
        split = _leave_type_out(manifest, options)
    elif options.kind == "group-folds":
        split = _group_folds(manifest, options)
    if options.label_fraction < 1:
        split = _fewer_labels(manifest, split, options)
    if split is manifest.split:
        return manifest
    _check_splits(manifest, split, options)
    before, after = (shared_groups(manifest.path, manifest.group, of) for of in (manifest.split, split))
    kept = [warning for warning in manifest.warnings if warning not in before]
    return replace(manifest, split=split, warnings=[*kept, *after])


def draw_share(
    label: np.ndarray, kind: np.ndarray, size: np.ndarray, share: float, draws: np.random.Generator
) -> np.ndarray:
    """Draw a share of ``n`` units (rows, or groups of rows) in proportion to classes, and in each class to kinds.

    All units are put in one order, of which the first are taken, so that a smaller share lies within a larger one drawn
    alike. Within a class, kinds alternate, each from a start of its own, since the many rare ones would otherwise all
    come late; then classes alternate.

    Args:
        label: ``n`` int64.
        kind: ``n`` int64; units of one kind have one label.
        size: ``n`` rows of each unit.
        share: of all rows, in (0, 1]; the units nearest to it are taken, at least one.
        draws: random numbers.

    Returns:
        ``n`` bool.
    """
    drawn = draws.permutation(len(size))
    starts = draws.random(kind.max(initial=-1) + 1)
    place = _place(label, size, _place(kind, size, drawn, starts[kind]), 0.5)
    order = np.lexsort((drawn, place))
    middle = np.cumsum(size[order]) - size[order] / 2
    taken = np.zeros(len(size), bool)
    taken[order[: max(1, np.count_nonzero(middle <= share * size.sum()))]] = True
    return taken


def kinds_of(manifest: Manifest) -> np.ndarray:
    """Return a number (int64) for the class and type of each row."""
    return np.unique([f"{i}\0{kind}" for i, kind in zip(manifest.label, manifest.type, strict=True)], False, True)[1]


def _place(stratum: np.ndarray, size: np.ndarray, order: np.ndarray, offset: np.ndarray | float) -> np.ndarray:
    """Return where in its stratum, from 0 to 1, each unit lies if those of each stratum stand in an order."""
    sequence = np.lexsort((order, stratum))
    total = np.bincount(stratum, size)
    before = np.cumsum(size[sequence]) - size[sequence] - (np.cumsum(total) - total)[stratum[sequence]]
    place = np.empty(len(size))
    place[sequence] = before
    return (place + offset * size) / total[stratum]


def _leave_type_out(manifest: Manifest, options: ProtocolOptions) -> np.ndarray:
    kind = options.type
    images = {image for image, its in zip(manifest.image_file, manifest.type, strict=True) if its == kind}
    if not images:
        known = sorted({*manifest.type} - {""})
        shown = ", ".join(f"'{name}'" for name in known) if known else "a column type, which no row has"
        raise DataError(
            f"{manifest.path}: protocol.type is '{kind}', not a type; expected one of {shown}"
            f"{nearest(str(kind), known)}"
        )
    # A type that is in a test split already stays in it, with the negatives that it is to be told from there.
    moved = np.array([image in images for image in manifest.image_file]) & np.isin(manifest.split, ["train", "val"])
    split = np.where(moved, "test", manifest.split)
    names = {manifest.label[row] for row in np.flatnonzero(moved)}
    if moved.any() and names == {*manifest.label[split == "test"].tolist()}:
        others = [name for name in manifest.test_splits if name != "test"]
        rename = f', or rename a split (data.splits = {{{others[0]} = "test"}})' if others else ""
        raise DataError(
            f"{manifest.path}: split test has no image of another class to tell type '{kind}' from; add some{rename}"
        )
    return split


def _group_folds(manifest: Manifest, options: ProtocolOptions) -> np.ndarray:
    pooled = np.ones(len(manifest), bool) if options.pool == "all" else np.isin(manifest.split, ["train", "val"])
    rows = np.flatnonzero(pooled)
    unit = np.unique(_units(manifest)[rows], return_inverse=True)[1]
    if (found := int(unit.max(initial=-1)) + 1) < options.folds:
        raise DataError(
            f"{manifest.path}: {counted(found, 'group')} to divide; protocol.folds = {options.folds} needs as many"
        )
    draws = np.random.default_rng([options.seed, *b"folds"])
    fold = assign_folds(kinds_of(manifest)[rows], manifest.label[rows], unit, options.folds, draws)
    names = np.full(options.folds, "train")
    names[[options.fold, (options.fold + 1) % options.folds]] = "test", "val"
    split = np.full(len(manifest), UNUSED)
    split[rows] = names[fold]
    return split


def assign_folds(
    kind: np.ndarray, label: np.ndarray, unit: np.ndarray, folds: int, draws: np.random.Generator
) -> np.ndarray:
    """Return the fold of each of ``n`` rows, such that folds are alike in kinds, classes and size.

    Units are placed one by one, those that weigh most in their kinds first, each where it raises the sum of squared
    shares (of a kind, class or all rows that a fold holds) least. It is the greedy scheme of scikit-learn's
    StratifiedGroupKFold with a criterion that is a dot product: as even, and some ten times as fast.

    Args:
        kind: ``n`` int64; rows of one kind have one label.
        label: ``n`` int64.
        unit: ``n`` int64 without gaps: rows of one unit stay together.
        folds: how many.
        draws: random numbers, which decide the order of units that weigh the same.
    """
    size = np.bincount(unit)
    count = np.zeros((len(size), (kinds := int(kind.max()) + 1) + int(label.max()) + 2))
    np.add.at(count, (unit, kind), 1)
    np.add.at(count, (unit, kinds + label), 1)
    count[:, -1] = size
    total = count.sum(0).clip(1)
    held = np.zeros((folds, count.shape[1]))
    fold = np.empty(len(size), np.int64)
    for i in np.lexsort((draws.permutation(len(size)), -(count / total).sum(1))).tolist():
        fold[i] = (held @ (count[i] / total**2)).argmin()
        held[fold[i]] += count[i]
    return fold[unit]


def _fewer_labels(manifest: Manifest, split: np.ndarray, options: ProtocolOptions) -> np.ndarray:
    rows = np.flatnonzero(split == "train")
    unit = np.unique(_units(manifest)[rows], return_inverse=True)[1]
    kind = kinds_of(manifest)[rows]
    # The class and type of a unit are those of most of its rows.
    pairs, rows_of = np.unique(np.stack([unit, kind]), axis=1, return_counts=True)
    pairs = pairs[:, np.argsort(rows_of, kind="stable")]
    main = np.empty(int(unit.max()) + 1, np.int64)
    main[pairs[0]] = pairs[1]  # what occurs twice is written last with the largest number
    label = np.empty(int(kind.max()) + 1, np.int64)
    label[kind] = manifest.label[rows]
    draws = np.random.default_rng([options.seed, *b"labels"])
    taken = draw_share(label[main], main, np.bincount(unit), options.label_fraction, draws)
    chosen = split.astype(np.result_type(split, np.array(UNUSED)))
    chosen[rows[~taken[unit]]] = UNUSED
    return chosen


def _units(manifest: Manifest) -> np.ndarray:
    """Return ``n`` int64, equal for rows that must stay together: of one group, or of the same image.

    They are numbered by the first of their images in alphabetical order, whatever the order of the rows.
    """
    image = np.unique(manifest.image_file, return_inverse=True)[1]
    images = int(image.max()) + 1
    names = [group or f"\0{i}" for group, i in zip(manifest.group, image, strict=True)]
    group = images + np.unique(names, return_inverse=True)[1]
    nodes = int(group.max()) + 1
    graph = coo_array((np.ones(len(image)), (image, group)), (nodes, nodes))
    unit = connected_components(graph, directed=False)[1]
    first = np.unique(unit[:images], return_index=True)[1]  # every unit has an image
    return first[unit[image]]


def _check_splits(manifest: Manifest, split: np.ndarray, options: ProtocolOptions) -> None:
    """Raise DataError if a class has fewer than two rows left in train, or a split that there was or should be none."""
    asked = ", ".join(f"protocol.{name} = {value}" for name, value in options if value != _DEFAULTS[name])
    held = np.bincount(manifest.label[(split == "train") & (manifest.label >= 0)], minlength=len(manifest.classes))
    problems = [
        f"{manifest.path}: {counted(int(n), 'row')} of class '{name}' left in train by {asked}; expected two or more"
        for name, n in zip(manifest.classes, held, strict=True)
        if n < 2
    ]
    wanted = ("val", "test") if options.kind == "group-folds" else ("val",) if (manifest.split == "val").any() else ()
    problems += [f"{manifest.path}: no row left in {name} by {asked}" for name in wanted if not (split == name).any()]
    if problems:
        raise DataError(problems)


_DEFAULTS = {name: field.default for name, field in ProtocolOptions.model_fields.items()}

"""The predictions file: one row for each image, with the raw logits from which every score and metric is derived.

A CSV (UTF-8) with the columns ``id,split,label,type,type_seen,group`` and then ``logit_<class>`` for each class, in
class order. ``label`` is blank where it is unknown; ``type_seen`` says whether the row's type occurred in training
(``yes``, ``no``, or blank for unknown). Logits are single-precision numbers, as networks give them, in the shortest
decimal form that reads back to the same bits: metrics of the file equal those of the predictions in memory.
"""

from __future__ import annotations

import csv
import os
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from lookhere.errors import DataError, UsageError, nearest

COLUMNS = ("id", "split", "label", "type", "type_seen", "group")
LOGIT = "logit_"
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Scores:
    """Predictions for ``n`` images of ``k`` classes; text columns are object arrays of ``str``.

    Raises:
        DataError: columns of different lengths, fewer than two classes, a label out of range, a logit not finite.
    """

    classes: tuple[str, ...]
    """``k`` class names, in the order of the logits."""
    id: NDArray[Any]
    """``n`` names of the images, as in the manifest."""
    split: NDArray[Any]
    """``n`` of ``train``, ``val`` or a name that starts with ``test``."""
    label: NDArray[np.int64]
    """``n`` indices into ``classes``, -1 = unknown."""
    type: NDArray[Any]
    """``n`` names of the attack, disease or generator; blank = none."""
    type_seen: NDArray[Any]
    """``n`` of ``yes``, ``no`` or blank: did this type occur in training?"""
    group: NDArray[Any]
    """``n`` subjects, patients or sources; blank = none."""
    logits: NDArray[np.float64]
    """``n k`` raw outputs of the network."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise DataError(f"classes are {list(self.classes)}: expected at least two, with different names")
        lengths = {name: len(getattr(self, name)) for name in (*COLUMNS, "logits")}
        if len(set(lengths.values())) > 1 or self.logits.shape[1:] != (len(self.classes),):
            raise DataError(f"columns of different lengths ({lengths}), or logits of shape {self.logits.shape}")
        if len(self) and not -1 <= self.label.min() <= self.label.max() < len(self.classes):
            raise DataError(
                f"labels reach from {self.label.min()} to {self.label.max()}: expected -1 (unknown) or a class"
            )
        bad = np.argwhere(~(np.abs(self.logits) <= LARGEST))
        if len(bad):
            raise DataError(
                [
                    f"{self.id[row]!r}, column {LOGIT}{self.classes[column]}: {self.logits[row, column]}, "
                    "expected a finite single-precision number"
                    for row, column in bad
                ]
            )

    def __len__(self) -> int:
        return len(self.id)

    def margin(self, positive: str) -> NDArray[np.float64]:
        """Return ``n`` log-odds of the class ``positive``: its logit minus the log-sum-exp of all others.

        The logit of the softmax probability, so it ranks alike, but it never saturates; 0 is a probability of 0.5. With
        two classes it is the difference of the logits.

        Raises:
            UsageError: ``positive`` is not one of the classes.
        """
        index = index_of(positive, self.classes)
        return self.logits[:, index] - logsumexp(np.delete(self.logits, index, axis=1), axis=1)

    def select(self, rows: NDArray[Any]) -> Scores:
        """Return the rows picked by a boolean mask or by row numbers."""
        columns = (*COLUMNS, "logits")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


def index_of(positive: str, classes: tuple[str, ...]) -> int:
    """Return the index of the class ``positive``; raise ``UsageError`` with the nearest name if there is none."""
    if positive not in classes:
        known = ", ".join(repr(name) for name in classes)
        raise UsageError(f"positive class {positive!r} is not one of {known}{nearest(positive, classes)}")
    return classes.index(positive)


def write_scores(path: str | os.PathLike[str], scores: Scores) -> None:
    """Write the predictions file, all of it or (when interrupted) none of it.

    Raises:
        UsageError: the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    names = [scores.classes[label] if label >= 0 else "" for label in scores.label]
    text = zip(scores.id, scores.split, names, scores.type, scores.type_seen, scores.group, strict=True)
    logits = scores.logits.astype(np.float32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*COLUMNS, *(LOGIT + name for name in scores.classes)])
            writer.writerows([*row, *map(str, values)] for row, values in zip(text, logits, strict=True))
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def read_scores(*paths: str | os.PathLike[str], positive: str | None = None) -> Scores:
    """Read predictions files; several of the same classes are joined, such as the one-class test lists of the field.

    Args:
        paths: files as `write_scores` writes them; the order of their columns is free.
        positive: if given, has to be one of the classes.

    Raises:
        UsageError: no file is given, or none of its classes is ``positive``.
        DataError: every problem of all files, each with file, row (line of the file), column and value.
    """
    if not paths:
        raise UsageError("no predictions file given")
    problems: list[str] = []
    parts = [part for path in paths if (part := _read(Path(path), problems)) is not None]
    if len(parts) > 1 and not problems:
        problems = _conflicts([str(path) for path in paths], parts)
    if problems:
        raise DataError(problems)
    if positive is not None:
        index_of(positive, parts[0].classes)
    return _join(parts) if len(parts) > 1 else parts[0]


def _conflicts(paths: list[str], parts: list[Scores]) -> list[str]:
    """Return why files cannot be joined: other classes, or the same image of the same split in two of them."""
    problems = []
    known: dict[tuple[str, str], str] = {}
    for path, part in zip(paths, parts, strict=True):
        if set(part.classes) != set(parts[0].classes):
            problems.append(f"{path}: classes {list(part.classes)}, expected {list(parts[0].classes)} as in {paths[0]}")
        keys = set(zip(part.split, part.id, strict=True))
        problems += [
            f"{path}: {id!r} of split {split} is in {known[split, id]} too" for split, id in sorted(keys & known.keys())
        ]
        known |= dict.fromkeys(keys, path)
    return problems


def _join(parts: list[Scores]) -> Scores:
    """Stack the rows of ``parts``, whose classes may come in different orders, in the class order of the first."""
    classes = parts[0].classes
    orders = [[part.classes.index(name) for name in classes] for part in parts]
    labels = [np.append([classes.index(name) for name in part.classes], -1)[part.label] for part in parts]
    logits = [part.logits[:, order] for part, order in zip(parts, orders, strict=True)]
    text = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS if name != "label"}
    return Scores(classes=classes, label=np.concatenate(labels), logits=np.concatenate(logits), **text)


def _records(path: Path, problems: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file, each with the line where it starts."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            line = 1
            try:
                for record in reader:
                    yield line, record
                    line = reader.line_num + 1
            except csv.Error as error:
                problems.append(f"{path}, row {line}: not a CSV record: {error}")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 text: {error.reason}")


def _read(path: Path, problems: list[str]) -> Scores | None:
    """Read one file; append what is wrong with it to ``problems`` and return None if anything is."""
    before = len(problems)
    records = _records(path, problems)
    _, header = next(records, (1, []))
    if len(problems) > before:
        return None
    classes = tuple(name.removeprefix(LOGIT) for name in header if name.startswith(LOGIT))
    _check_header(path, header, classes, problems)
    if len(problems) > before:
        return None
    where = {name: header.index(name) for name in COLUMNS}
    positions = [header.index(LOGIT + name) for name in classes]
    text: dict[str, list[str]] = {name: [] for name in COLUMNS}
    label, logits = array("q"), array("d")
    indices = {"": -1} | {name: index for index, name in enumerate(classes)}
    for line, record in records:
        if len(record) != len(header):
            problems.append(f"{path}, row {line}: {len(record)} fields, expected {len(header)} as in the header")
            continue
        for name, position in where.items():
            # Few different values in a million rows: keep one copy of each.
            text[name].append(record[position] if name == "id" else sys.intern(record[position]))
        wrong = _check_values({name: values[-1] for name, values in text.items()}, indices)
        for position in positions:
            value = _number(record[position])
            logits.append(value)
            if not abs(value) <= LARGEST:
                expected = "a finite single-precision number"
                wrong.append(f"column {header[position]}: {record[position]!r}, expected {expected}")
        problems += [f"{path}, row {line}, {reason}" for reason in wrong]
        label.append(indices.get(text["label"][-1], -1))
    if not label and len(problems) == before:
        problems.append(f"{path}: no rows below the header")
    if len(problems) > before:
        return None
    columns = {name: np.array(values, dtype=object) for name, values in text.items() if name != "label"}
    # The decimals stand for single-precision numbers; see the top of this file.
    table = np.array(logits).astype(np.float32).astype(np.float64).reshape(-1, len(classes))
    return Scores(classes=classes, label=np.array(label, dtype=np.int64), logits=table, **columns)


def _check_header(path: Path, header: list[str], classes: tuple[str, ...], problems: list[str]) -> None:
    expected = ", ".join((*COLUMNS, LOGIT + "<class>"))
    if not header:
        problems.append(f"{path}: empty, expected a header with the columns {expected}")
        return
    problems += [
        f"{path}: no column {name!r} in the header {header}{nearest(name, header)}"
        for name in COLUMNS
        if name not in header
    ]
    problems += [f"{path}: column {name!r} occurs twice" for name in dict.fromkeys(header) if header.count(name) > 1]
    problems += [
        f"{path}: unknown column {name!r}, expected {expected}"
        for name in header
        if name not in COLUMNS and not name.startswith(LOGIT)
    ]
    if len(classes) < 2 or "" in classes:
        problems.append(
            f"{path}: columns {LOGIT}<class> for the classes {list(classes)}, expected at least two named ones"
        )


def _check_values(row: dict[str, str], indices: dict[str, int]) -> list[str]:
    """Return what is wrong with the text of a row."""
    wrong = []
    if row["split"] not in ("train", "val") and not row["split"].startswith("test"):
        wrong.append(f"column split: {row['split']!r}, expected train, val or a name that starts with test")
    if row["label"] not in indices:
        known = ", ".join(indices)[2:]
        wrong.append(
            f"column label: {row['label']!r}, expected blank or one of {known}{nearest(row['label'], indices)}"
        )
    if row["type_seen"] not in ("yes", "no", ""):
        wrong.append(f"column type_seen: {row['type_seen']!r}, expected yes, no or blank")
    return wrong


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")

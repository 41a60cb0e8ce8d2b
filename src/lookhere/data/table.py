"""Reads a CSV file into columns, and says what is wrong with its form."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lookhere.errors import DataError, nearest

REQUIRED = ("image", "label", "split")
OPTIONAL = ("saliency", "type", "group", "weight")
RICH = f"{','.join(REQUIRED)}[,{','.join(OPTIONAL)}]"
LISTS = (["split", "label", "path"], ["split", "label", "image"])
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val"}
UNUSED = "unused"
"""The split of rows that a protocol leaves out; a file cannot say it."""


@dataclass(frozen=True)
class Table:
    """A manifest by columns, ``columns[name][i]`` being the text of row ``i``, and what is wrong with it."""

    path: Path
    columns: dict[str, list[str]]
    line: list[int]
    """Line of the file on which each row starts, as an editor counts."""
    is_list: bool
    """Is this the ``split,label,path`` list of D-NetPAD, CYBORG, MENTOR and VISER?"""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def at(self, row: int, column: str, what: str) -> None:
        """Note a problem of one cell."""
        self.problems.append(f"{self.path}, row {self.line[row]}, column {column}: {what}")

    def overall(self, what: str) -> None:
        """Note a problem of the manifest as a whole."""
        self.problems.append(f"{self.path}: {what}")


def is_split(value: str) -> bool:
    """Is ``value`` a name of a split, in any case: train, val (valid, validate, validation) or test…?"""
    name = value.strip().casefold()
    return name in SPLIT_NAMES or name.startswith("test")


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: 1 row, 2 rows."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def read_table(path: Path, required: Sequence[str] = REQUIRED) -> Table:
    """Read a manifest of either form.

    Ragged rows are left out and listed in ``problems``, so that one reading finds all problems.

    Raises:
        DataError: the file cannot be read, is not UTF-8, is not separated by commas, has no rows, or its header lacks
            one of the ``required`` columns, repeats one, or has one that is unknown.
    """
    rows = _rows(path)
    start, first = next(rows, (0, []))
    if not first:
        raise DataError(f"{path}: no rows, the file is empty; expected a header {RICH}, or rows of split,label,path")
    is_list, named = _form(path, first, required)
    names = ["split", "label", "image"] if is_list else first
    columns: dict[str, list[str]] = {name: [] for name in names}
    append = [columns[name].append for name in names]
    # A million rows hold few different splits, labels and types: each text is kept once.
    shared: dict[str, str] = {}
    table = Table(path, columns, [], is_list)

    def keep(line: int, row: list[str]) -> None:
        if len(row) != len(names):
            found = f"{counted(len(row), 'field')} ({','.join(row)!r})"
            table.problems.append(f"{path}, row {line}: {found}; expected {len(names)}: {','.join(names)}")
            return
        table.line.append(line)
        for add, value in zip(append, row, strict=True):
            add(shared.setdefault(value, value))

    if not named:
        keep(start, first)
    for line, row in rows:
        keep(line, row)
    if not table.line and not table.problems:
        raise DataError(f"{path}: no rows below the header {','.join(first)!r}; expected one row for each image")
    return table


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: manifest not found; expected a CSV file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; expected a CSV file (its manifest.csv?)") from None
    except OSError as error:
        raise DataError(f"{path}: the manifest cannot be read ({error.strerror})") from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw:
        raise DataError(
            f"{path}: the encoding looks like UTF-16 (or this is no text); expected UTF-8: save it as CSV UTF-8"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        byte = f"0x{raw[error.start]:02x}"
        raise DataError(f"{path}, row {row}: the encoding is not UTF-8 (byte {byte}); save it as CSV UTF-8") from None


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which the row starts, fields) for each row that is not blank."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    start = 1
    try:
        for row in reader:
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, row {start}: not valid CSV ({error}); expected fields separated by commas") from None


def _form(path: Path, first: list[str], required: Sequence[str]) -> tuple[bool, bool]:
    """Return (is this the field's list of split, label and path?, is the first row a header?)."""
    written = ",".join(first)
    mark = next((mark for mark in ";\t|" if mark in first[0]), None)
    if len(first) == 1 and mark:
        raise DataError(
            f"{path}, row 1: the fields are separated by {mark!r}; expected commas and the header {RICH} (or rows of "
            f"split,label,path); found {written!r}"
        )
    if is_split(first[0]):
        return True, False
    if first in LISTS:
        return True, True
    problems = [
        f"{path}, row 1: column '{name}' occurs {first.count(name)} times in the header {written!r}; expected once"
        for name in dict.fromkeys(first)
        if first.count(name) > 1
    ]
    missing = [name for name in required if name not in first]
    problems += [f"{path}, row 1: no column '{name}' in the header {written!r}; expected {RICH}" for name in missing]
    known = [*REQUIRED, *OPTIONAL]
    free = [name for name in known if name not in first]
    problems += [
        f"{path}, row 1: unknown column '{name}'; expected {RICH}{nearest(name.strip().lower(), free)}"
        for name in first
        if name not in known
    ]
    if problems:
        raise DataError(problems)
    return False, True

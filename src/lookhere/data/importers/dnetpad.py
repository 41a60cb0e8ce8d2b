"""Lists of the D-NetPAD family: rows of split, label and path without a header, and maps found by file name.

D-NetPAD, CYBORG, MENTOR, VISER and the LivDet-Iris 2025 baselines all read such lists. Their traps: the rows named
``test`` of a training list are the validation set, on which the published code selects its models, while tests are
lists of their own; paths start with ``/`` because they are appended to a root as text; a label in another case is
another class; two images of one name share a map.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lookhere.data.columns import read_splits
from lookhere.data.decode import ColourMap
from lookhere.data.files import Files, clean
from lookhere.data.importers import list_examples
from lookhere.data.importers.base import Importer, ImportOptions, Ledger, Sample
from lookhere.data.importers.lookup import without_suffix
from lookhere.data.importers.mapfile import map_file, maps_of
from lookhere.data.table import Table, counted, read_table
from lookhere.errors import DataError, UsageError


class ListOptions(ImportOptions):
    """Where the files of lists are."""

    root: Path | None = None
    """Folder that the paths of the lists are relative to; by default that of the first list."""
    maps: Path | None = None
    """Folder of saliency maps, which have the names of the images."""
    suffix: str = ""
    """What follows the image's name in its map's: "_blended" in VISER."""
    colour_map: ColourMap = "refuse"
    """Maps in the colours of viridis or another monotone colour map: refuse them, or read their values back."""


class DNetPadOptions(ListOptions):
    """Options of lists of the D-NetPAD family."""

    test_rows: Literal["val", "test"] | None = None
    """What the test rows of a list with train rows are: the validation set, as in this family, or a test."""


@dataclass(frozen=True)
class Row:
    """An image of a list."""

    file: str
    """Relative to the root."""
    label: str
    split: str
    type: str
    place: str
    """For messages."""
    of_training: bool
    """Does its list have train rows?"""


def read(paths: Sequence[Path], options: DNetPadOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images of all lists."""
    return read_lists(paths, options, options.test_rows, ledger)


def read_lists(
    paths: Sequence[Path], options: ListOptions, test_rows: Literal["val", "test"] | None, ledger: Ledger
) -> Iterator[Sample]:
    """Yield the images of lists; those without train rows are joined into one test, with the list's name as type.

    Maps are looked for by the training lists' images only, or by all if there is no training list: the images of tests
    often carry running numbers, which other images have too.

    Raises:
        UsageError: ``test_rows`` is needed and not given.
        DataError: a list cannot be read, or the maps cannot be listed.
    """
    root = options.root or paths[0].parent
    tables = [_list(path) for path in paths]
    splits = [read_splits(table.columns["split"], {}, "", table) for table in tables]
    training = [bool((split == "train").any()) for split in splits]
    for table, split, trains in zip(tables, splits, training, strict=True):
        named = int((split == "test").sum())
        if trains and named and test_rows is None:
            raise UsageError(
                f"test_rows: is required, because {table.path} has {counted(named, 'row')} named test beside its train "
                "rows; expected test_rows=val (the validation set, as in D-NetPAD, CYBORG and MENTOR, whose tests are "
                "lists of their own) or test_rows=test"
            )
        if trains:
            split[split == "test"] = test_rows or "test"
    files = Files(root)
    several = training.count(False) > 1
    rows: dict[str, Row] = {}
    for table, split, trains in zip(tables, splits, training, strict=True):
        kind = table.path.stem if several and not trains else ""
        for row in _rows(table, split, trains, kind, files):
            first = rows.setdefault(row.file, row)
            if first is row:
                continue
            if (first.split, first.label.casefold()) == (row.split, row.label.casefold()):
                ledger.drop("row with the image of an earlier one", f"{row.place}, '{row.file}'")
            else:
                before = f"{first.label}, {first.split} ({first.place})"
                ledger.problems.append(
                    f"{row.place}: '{row.file}' is {row.label}, {row.split} here and {before}; expected it once"
                )
        ledger.problems += table.problems
        ledger.warnings += table.warnings
    spelling = _spelling([row.label for row in rows.values()])
    chosen = [row for row in rows.values() if row.of_training or not any(training)]
    drawn: dict[str, Path | None] = {}
    if options.maps:
        places = [(row.file, row.place) for row in chosen]
        found = maps_of(places, options.maps, options.suffix, ledger.problems)
        drawn = dict(zip((row.file for row in chosen), found, strict=True))
    ledger.facts["lists"] = [str(path) for path in paths]
    ledger.facts["test_rows_of_training_lists"] = test_rows
    ledger.facts["labels_read_as"] = {old: new for old, new in spelling.items() if old != new}
    for row in rows.values():
        path = drawn.get(row.file)
        maps = (map_file(path, options.colour_map),) if path else ()
        yield Sample(root / row.file, without_suffix(row.file), spelling[row.label], row.split, maps, type=row.type)


def _list(path: Path) -> Table:
    table = read_table(path)
    if not table.is_list:
        raise DataError(f"{path}: is a manifest with a header already; train with it as it is")
    return table


def _rows(table: Table, split: np.ndarray, trains: bool, kind: str, files: Files) -> Iterator[Row]:
    for i, (label, written) in enumerate(zip(table.columns["label"], table.columns["image"], strict=True)):
        file = clean(written, strip_root=True)
        problem = files.problem(file) if file else "empty; expected the path of an image"
        if problem:
            table.at(i, "path", problem)
        else:
            place = f"{table.path}, row {table.line[i]}"
            yield Row(file, label, str(split[i]), kind, place, trains)


def _spelling(labels: Sequence[str]) -> dict[str, str]:
    """Return each label with how it is written most often: lists of this family mix Attack and attack."""
    count = Counter(labels)
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for label in count:
        spellings[label.casefold()].append(label)
    return {label: max(same, key=lambda name: (count[name], name)) for same in spellings.values() for label in same}


IMPORTERS = (
    Importer(
        name="dnetpad",
        title="Lists of split,label,path without a header (D-NetPAD, MENTOR, VISER, LivDet-Iris 2025 baselines)",
        request="Your own lists, as made for https://github.com/iPRoBe-lab/D-NetPAD and the code that grew from it.",
        licence="That of the images that the lists name.",
        Options=DNetPadOptions,
        read=read,
        example=list_examples.dnetpad,
        example_arguments=(
            "{folder}/train.csv",
            "{folder}/sensor_a.csv",
            "{folder}/printouts.csv",
            "--set",
            "test_rows=val",
            "--set",
            "maps={folder}/maps",
        ),
    ),
)

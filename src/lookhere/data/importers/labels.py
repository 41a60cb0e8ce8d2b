"""The labels of a folder of images: from a table, or from the folders that they lie in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from lookhere.data.importers.lookup import Lookup, without_suffix
from lookhere.data.importers.pixels import IMAGES
from lookhere.data.table import SPLIT_NAMES, read_table
from lookhere.errors import DataError

FOLDERS = {**SPLIT_NAMES, "test": "test"}


class Labelled(NamedTuple):
    """An image file and what is known of it."""

    image: Path
    name: str
    label: str
    split: str
    type: str = ""
    group: str = ""
    weight: float = 1.0


def image_files(folder: Path) -> list[str]:
    """Return the images below a folder as relative paths with ``/``; hidden ones and finished imports are passed over.

    Raises:
        DataError: it is no folder, or no image lies in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a folder of images (option images)")
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if "provenance.json" in files or real in seen:  # a link may lead back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = [name for name in files if name.lower().endswith(IMAGES) and not name.startswith(".")]
        found += [Path(place, name).relative_to(folder).as_posix() for name in sorted(names)]
    if not found:
        raise DataError(f"{folder}: no images below it; expected files of {', '.join(IMAGES)}")
    return found


def from_folders(folder: Path) -> tuple[list[Labelled], list[str]]:
    """Return the images with the folder that each lies in as label, and problems.

    A first folder named train, val or test is the split: ``train/live/1.png``.
    """
    rows, problems = [], []
    for file in image_files(folder):
        parts = file.split("/")[:-1]
        split = FOLDERS.get(parts[0].casefold(), "") if parts else ""
        if parts and parts[-1] and not (split and len(parts) == 1):
            rows.append(Labelled(folder / file, without_suffix(file), parts[-1], split))
        else:
            problems.append(
                f"{folder / file}: no folder tells its label; expected one folder for each class, or the option "
                "table=CSV with the columns image,label"
            )
    return rows, problems


def from_table(folder: Path, path: Path) -> tuple[list[Labelled], list[str], list[str]]:
    """Return the images that a table lists, problems, and the images that it does not list.

    The table's paths are relative to the folder, or end in the path or name of an image below it.
    """
    table = read_table(path, required=("image", "label"))
    files = image_files(folder)
    lookup = Lookup((file, file) for file in files)
    column = {name: table.columns.get(name, [""] * len(table.line)) for name in ("split", "type", "group", "weight")}
    row_of: dict[str, int] = {}
    rows = []
    for i, (written, label) in enumerate(zip(table.columns["image"], table.columns["label"], strict=True)):
        try:
            file = lookup.find(written)
        except DataError as error:
            table.at(i, "image", str(error))
            continue
        if file is None:
            table.at(i, "image", f"'{written}' not found below {folder}")
            continue
        first = row_of.setdefault(file, i)
        if first != i:
            table.at(i, "image", f"'{file}' is in row {table.line[first]} too; expected one row for each image")
        try:
            weight = float(column["weight"][i] or 1)
        except ValueError:
            table.at(i, "weight", f"'{column['weight'][i]}'; expected a number of at least 0")
            continue
        fields = (label, column["split"][i], column["type"][i], column["group"][i], weight)
        rows.append(Labelled(folder / file, without_suffix(file), *fields))
    return rows, table.problems, sorted(set(files) - row_of.keys())

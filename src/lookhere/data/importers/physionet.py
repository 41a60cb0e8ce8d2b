"""What the chest sets of PhysioNet share: their CSV files, images found by DICOM id, and the paper's two classes."""

from __future__ import annotations

import csv
import gzip
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TextIO

from lookhere.data.importers.base import ImportOptions
from lookhere.data.importers.pixels import IMAGES
from lookhere.errors import DataError, UsageError, nearest

PAPER_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Pleural Effusion",
    "Lung Opacity",
    "Pneumonia",
    "Edema",
    "Support Devices",
)
"""One of these makes a radiograph abnormal (SAGE, section 4.1)."""


class ChestOptions(ImportOptions):
    """Where the images of a chest set are: PhysioNet keeps them apart from what is said about them."""

    images: Path | None = None
    """Folder of the images, at any depth: <dicom_id>.dcm, .jpg or .png; by default the folder that is imported."""


class AbnormalOptions(ChestOptions):
    """Which radiographs are abnormal: the paper names the findings, and does not say what is normal."""

    findings: tuple[str, ...] = PAPER_FINDINGS
    """CheXpert labels that make a radiograph abnormal; by default the paper's seven."""
    normal: Literal["no-finding", "rest"] = "no-finding"
    """Normal is what is labelled No Finding (others are left out), or whatever is not abnormal."""
    uncertain: Literal["drop", "positive", "negative"] = "drop"
    """Findings labelled -1: leave the image out unless another is certain, or take them for positive or negative."""

    def judge(self, values: Mapping[str, str]) -> tuple[str, str, str]:
        """Return (label, type, why there is no label) from CheXpert values: 1, 0, -1 (uncertain) or blank.

        The type is the finding, or "several findings". Support devices are abnormal, although CheXpert counts an image
        with nothing else as No Finding.
        """
        read = {name: _certainty(values[name]) for name in (*self.findings, "No Finding")}
        if None in read.values():
            return "", "", "a label that is not 1, 0, -1 or blank"
        taken = (1, -1) if self.uncertain == "positive" else (1,)
        present = [name for name in self.findings if read[name] in taken]
        if present:
            return "abnormal", present[0] if len(present) == 1 else "several findings", ""
        if self.uncertain == "drop" and any(read[name] == -1 for name in self.findings):
            return "", "", "a finding is uncertain (-1), and none is certain"
        if self.normal == "rest" or read["No Finding"] == 1:
            return "normal", "", ""
        return "", "", "neither abnormal nor No Finding"


def _certainty(text: str) -> float | None:
    """Return a CheXpert value, 0 if it is blank (not mentioned), or None if it is none."""
    value = number(text) if text.strip() else 0.0
    return value if value in (0, 1, -1) else None


def one_folder(paths: Sequence[Path], file: str) -> Path:
    """Return the one folder given on the command line, which is to hold ``file`` (or what its name starts with)."""
    if len(paths) != 1:
        raise UsageError(f"{len(paths)} paths given; expected one, the folder with {file}")
    if not paths[0].is_dir():
        raise DataError(f"{paths[0]}: not a folder; expected the folder with {file}")
    return paths[0]


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the records of a CSV file (.gz too) as (place for messages, value by column).

    Columns are found whatever their case, spaces and punctuation, which differ between the releases; columns that are
    not asked for are left out. Values are text, since ids of digits only must not become numbers. A record may hold
    line breaks in quotes.

    Raises:
        DataError: the file cannot be read, is not UTF-8 or not CSV, lacks a column, or has a record of another length.
    """
    row = 1
    try:
        with _opened(path) as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            place = _places(path, header, columns, optional)
            row = reader.line_num + 1
            for fields in reader:
                if fields and len(fields) != len(header):
                    raise DataError(
                        f"{path}, row {row}: {len(fields)} fields; expected {len(header)}, as in the header"
                    )
                if fields:
                    yield f"{path}, row {row}", {name: fields[i] for name, i in place.items()}
                row = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, row {row}: not valid CSV ({error})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 after row {row}; save it as CSV UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _places(path: Path, header: list[str], columns: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(header):
        found[_plain(name)].append(i)
    problems = []
    for name in columns:
        if len(found[_plain(name)]) != 1:
            close = nearest(name, header)
            problems.append(f"{path}: {len(found[_plain(name)])} columns '{name}'; expected one{close}")
    if problems:
        raise DataError(problems)
    return {name: found[_plain(name)][0] for name in (*columns, *optional) if found[_plain(name)]}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def number(text: str) -> float:
    """Return the number that a field holds, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan


class Images:
    """Images below a folder by their names without suffix."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"images: {folder} is not a folder")
        self.folder = folder
        self.files: dict[str, list[str]] = {}
        for place, _, names in os.walk(folder):
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in IMAGES:
                    self.files.setdefault(stem, []).append(os.path.join(place, name))

    def find(self, name: str) -> Path | None:
        """Return the image of a name, or None if there is none.

        Raises:
            DataError: there are several; the message names them.
        """
        files = self.files.get(name, [])
        if len(files) > 1:
            raise DataError(f"image {name}: {' and '.join(sorted(files)[:2])} have its name; expected one file")
        return Path(files[0]) if files else None

    def none_of(self, count: int) -> str:
        """Return the problem that not one of ``count`` images was found."""
        return f"{self.folder}: none of the {count:,} images is in it; expected files such as <dicom_id>.dcm or .jpg"

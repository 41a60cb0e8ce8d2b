"""Reads fixations from what eye trackers export: tables of any separator and encoding, and EyeLink's .asc files.

Columns are found by name without regard to case, spaces and punctuation, which differ between versions. Tables are
streamed: an export with a row for each of 1200 samples per second is far larger than the fixations in it.
"""

from __future__ import annotations

import codecs
import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from lookhere.data.importers.base import Ledger
from lookhere.errors import DataError, UsageError, nearest

Coordinates = Literal["image-px", "image-fraction", "screen-px", "screen-fraction"]
Origin = Literal["top-left", "bottom-left"]
TimeUnit = Literal["s", "ms", "us", "ns"]
FALSE = ("", "0", "false", "no")


class Fixation(NamedTuple):
    """One fixation in the coordinates of its file."""

    image: str
    """As written; "" = the file does not say."""
    observer: str
    event: str
    """What rows of one fixation have in common; "" = each row is a fixation."""
    x: float
    y: float
    duration: float
    """In the file's unit; 1 if there is none, nan if it cannot be read."""


@dataclass(frozen=True)
class Layout:
    """What a program's export looks like; names of columns are alternatives, the first found is taken."""

    title: str
    files: tuple[str, ...]
    """Patterns of its files in a folder."""
    positions: Mapping[Coordinates, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """Columns of x and y by coordinate space; none for files that are no tables."""
    image: tuple[str, ...] = ()
    observer: tuple[str, ...] = ()
    event: tuple[str, ...] = ()
    recording: str = ""
    """Column that need not be there: events are numbered anew in each recording."""
    duration: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    """Column whose value is "Fixation" for rows of fixations."""
    origin: Origin | None = None
    time_unit: TimeUnit | None = None


LAYOUTS: dict[str, Layout] = {
    "tobii": Layout(
        title="Tobii Pro Lab",
        files=("*.tsv", "*.csv", "*.txt"),
        positions={
            "screen-px": (
                ("Fixation point X", "Fixation point Y"),
                ("Fixation point X [DACS px]", "Fixation point Y [DACS px]"),
            ),
            "image-fraction": (("Fixation point X (MCSnorm)", "Fixation point Y (MCSnorm)"),),
            "image-px": (("Fixation point X (MCSpx)", "Fixation point Y (MCSpx)"),),
        },
        image=("Presented Stimulus name", "Presented Media name"),
        observer=("Participant name",),
        event=("Eye movement type index",),
        recording="Recording name",
        duration=(
            "Gaze event duration",
            "Gaze event duration [ms]",
            "Eye movement event duration",
            "Eye movement event duration [ms]",
        ),
        kind=("Eye movement type",),
        origin="top-left",
        time_unit="ms",
    ),
    "neon": Layout(
        title="Pupil Labs Neon or Cloud, mapped onto a reference image",
        files=("fixations.csv",),
        positions={"image-px": (("fixation x [px]", "fixation y [px]"),)},
        observer=("recording id",),
        event=("fixation id",),
        duration=("duration [ms]",),
        valid=("fixation detected in reference image",),
        origin="top-left",
        time_unit="ms",
    ),
    "pupil-core": Layout(
        title="Pupil Core, surface tracker",
        files=("fixations_on_surface_*.csv",),
        positions={
            "image-fraction": (("norm_pos_x", "norm_pos_y"),),
            "screen-fraction": (("norm_pos_x", "norm_pos_y"),),
            "image-px": (("x_scaled", "y_scaled"),),
            "screen-px": (("x_scaled", "y_scaled"),),
        },
        event=("fixation_id",),
        duration=("duration",),
        valid=("on_surf",),
        origin="bottom-left",
        time_unit="ms",
    ),
    "gazepoint": Layout(
        title="Gazepoint Analysis",
        files=("*fixations.csv",),
        positions={"screen-fraction": (("FPOGX", "FPOGY"),)},
        image=("MEDIA_NAME", "MEDIA_ID"),
        event=("FPOGID",),
        duration=("FPOGD",),
        valid=("FPOGV",),
        origin="top-left",
        time_unit="s",
    ),
    "eyelink": Layout(
        title="EyeLink, .edf converted by edf2asc",
        files=("*.asc",),
        positions={"screen-px": ()},
        origin="top-left",
        time_unit="ms",
    ),
    "generic": Layout(title="any other table", files=("*.csv", "*.tsv", "*.txt")),
}


def plain(name: str) -> str:
    """Return the name of a column without case, spaces and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def read_rows(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield (line on which the row starts, fields, separator) of a table separated by tabs, semicolons or commas.

    Raises:
        DataError: the file cannot be read or decoded, or is no such table.
    """
    start = 1
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            first = file.readline()
            separator = max("\t;,", key=first.count)
            if first.startswith("PK\x03\x04"):
                raise DataError(f"{path}: a spreadsheet; export it as TSV or CSV")
            if separator not in first:
                raise DataError(
                    f"{path}, row 1: expected names of columns separated by tab, ';' or ','; found {first!r}"
                )
            file.seek(0)
            reader = csv.reader(file, delimiter=separator)
            for row in reader:
                if row:
                    yield start, row, separator
                start = reader.line_num + 1
    except UnicodeDecodeError:
        raise DataError(f"{path}, near row {start}: neither UTF-8 nor UTF-16; save it as one of them") from None
    except csv.Error as error:
        raise DataError(f"{path}, row {start}: not a valid table ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(1024)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if start[1::2].count(0) > len(start) // 4:
        return "utf-16-le"
    return "utf-16-be" if start[::2].count(0) > len(start) // 4 else "utf-8-sig"


def table_fixations(
    path: Path, layout: Layout, coordinates: Coordinates, columns: Mapping[str, str], ledger: Ledger
) -> Iterator[Fixation]:
    """Yield the fixations of a table; rows that are none are counted in the ledger, ragged ones noted as problems.

    Args:
        path: table with a header.
        layout: of its program.
        coordinates: which of the layout's positions are read.
        columns: names that replace the layout's: image, observer, event, x, y, duration, valid.
        ledger: gets what was left out.

    Raises:
        DataError: see ``read_rows``; also for a column that is missing or occurs twice.
    """
    rows = read_rows(path)
    _, header, separator = next(rows)
    pairs = layout.positions.get(coordinates, ())
    wanted = {
        "image": layout.image,
        "observer": layout.observer,
        "event": layout.event,
        "x": tuple(x for x, _ in pairs),
        "y": tuple(y for _, y in pairs),
        "duration": layout.duration,
        "valid": layout.valid,
        "kind": layout.kind,
    } | {key: (name,) for key, name in columns.items()}
    at = {key: _column(path, header, key, names) for key, names in wanted.items()}
    recordings = [place for place, name in enumerate(header) if name and plain(name) == plain(layout.recording)]

    def cell(row: list[str], key: str, default: str = "") -> str:
        place = at[key]
        return default if place is None else row[place].strip()

    def number(text: str) -> float:
        try:
            return float(text if separator == "," else text.replace(",", "."))
        except ValueError:
            return math.nan

    for line, row, _ in rows:
        if len(row) != len(header):
            ledger.problems.append(f"{path}, row {line}: {len(row)} fields; expected {len(header)}, as in the header")
        elif (kind := cell(row, "kind", "fixation")).casefold() != "fixation":
            ledger.drop(f"row of another eye movement: {kind or 'none'}", f"{path}, row {line}")
        elif cell(row, "valid", "1").casefold() in FALSE:
            ledger.drop("row marked as not valid", f"{path}, row {line}")
        else:
            event = cell(row, "event")
            yield Fixation(
                cell(row, "image"),
                cell(row, "observer"),
                event and "/".join([*(row[place] for place in recordings), event]),
                number(cell(row, "x")),
                number(cell(row, "y")),
                number(cell(row, "duration", "1")),
            )


def _column(path: Path, header: list[str], key: str, names: tuple[str, ...]) -> int | None:
    """Return where a column is; None if the layout has none of that kind."""
    known = [plain(name) for name in header]
    for name in names:
        if (count := known.count(plain(name))) > 1:
            raise DataError(f"{path}, row 1: column '{name}' occurs {count} times; expected once")
        if count:
            return known.index(plain(name))
    if not names and key not in ("x", "y"):
        return None
    if not names:
        raise UsageError(f"columns.{key}: is required; expected the name of a column of {path}: {', '.join(header)}")
    expected = " or ".join(f"'{name}'" for name in names)
    like = [
        f"format = {name} with coordinates = {space}"
        for name, layout in LAYOUTS.items()
        for space, pairs in layout.positions.items()
        if any({plain(x), plain(y)} <= set(known) for x, y in pairs)
    ]
    looks = f"; it has the positions of {' or '.join(like)}" if like else ""
    raise DataError(
        f"{path}, row 1: no column {expected} among {', '.join(header)}{nearest(names[0], header)}{looks}; or name it "
        f"with columns.{key}=NAME"
    )

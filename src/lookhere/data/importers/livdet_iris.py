"""LivDet-Iris: irises of the 2020 and 2025 competitions, bona fide or presented as one of several kinds of attack.

- **2020**: a folder for each kind of presentation, below the folder that is given. The set is a test: 5,331 bona fide
  images and 7,101 attacks of five kinds; training data comes from elsewhere.
- **2025**: a list with the columns ``index,filename``, as submissions get it, and the truth in the form of the
  published raw scores: rows of truth, score and type without a header, in the order of the list.

With circles, each image is cropped to its iris with 16 pixels around it, the map with it, as the field's code does:
the crop stays square, and what leaves the image is black.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from lookhere.data.decode import ColourMap
from lookhere.data.files import Files, clean
from lookhere.data.importers import list_examples
from lookhere.data.importers.base import Importer, ImportOptions, Ledger, Sample
from lookhere.data.importers.labels import image_files
from lookhere.data.importers.lookup import Lookup, without_suffix
from lookhere.data.importers.mapfile import map_file, maps_of
from lookhere.data.importers.physionet import read_rows
from lookhere.data.importers.pixels import image_size
from lookhere.data.table import counted
from lookhere.errors import DataError, UsageError, nearest

BONA_FIDE, ATTACK = "bona fide", "attack"
# fmt: off
KINDS = {
    BONA_FIDE: ("bona fide", "bonafide", "live", "real", "authentic", "genuine"),
    "printed": ("printed", "print", "printout", "paper printout", "paper print"),
    "textured contact": ("textured contact", "patterned contact", "cosmetic contact", "contact", "contact lens",
                         "contact lenses", "textured contact lens", "textured contact lenses"),
    "electronic display": ("electronic display", "display", "screen"),
    "prosthetic": ("prosthetic", "fake", "artificial", "glass prosthesis", "fake prosthetic", "prosthetic eye",
                   "fake prosthetic printed with add ons"),
    "cadaver": ("cadaver", "cadaver eye", "cadaver iris", "post mortem", "postmortem"),
    "synthetic": ("synthetic",),
    "diseased": ("diseased",),
}
# fmt: on
SIZE_2025 = (640, 480)


def _plain(name: str) -> str:
    """Return the name of a folder in lower case, without numbers, punctuation and plurals: 3_Contacts."""
    words = re.sub(r"[^a-z]+", " ", name.casefold()).split()
    return " ".join(word.removesuffix("s") for word in words)


NAMES = {_plain(name): kind for kind, names in KINDS.items() for name in names}


class LivDetIrisOptions(ImportOptions):
    """What comes from other files, and what the images are for."""

    split: Literal["test", "draw"] = "test"
    """The sets are tests; draw makes train, val and test of them."""
    folders: dict[str, str] = Field(default_factory=dict)
    """2020: names of folders that are not known, with their kinds ("bona fide" or an attack)."""
    truth: Path | None = None
    """2025: rows of truth, score and type without a header, in the order of the list."""
    circles: Path | None = None
    """CSV filename,x,y,r: the circle of each iris in pixels; images without one are left out, and counted."""
    padding: int = Field(16, ge=0)
    """Pixels around the circle that stay."""
    maps: Path | None = None
    """Folder of saliency maps of the whole images, which have their names."""
    suffix: str = ""
    """What follows the image's name in its map's."""
    colour_map: ColourMap = "refuse"
    """Maps in the colours of viridis or another monotone colour map: refuse them, or read their values back."""


class Iris(NamedTuple):
    """An image, its kind of presentation, and the place for messages."""

    file: str
    kind: str
    place: str


def read(paths: Sequence[Path], options: LivDetIrisOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images of a folder of kinds (2020) or of a list (2025)."""
    if len(paths) != 1:
        raise UsageError(f"{len(paths)} paths given; expected one, the folder of 2020 or the list of 2025")
    (path,) = paths
    if path.is_dir():
        root, irises = path, list(_of_folders(path, options, ledger))
    else:
        root, irises = path.parent, list(_of_list(path, options, ledger))
    maps: list[Path | None] = [None] * len(irises)
    if options.maps:
        maps = maps_of([(one.file, one.place) for one in irises], options.maps, options.suffix, ledger.problems)
    circles = _circles(options.circles, ledger) if options.circles else None
    padded = 0
    for iris, drawn in zip(irises, maps, strict=True):
        crop = None
        if circles is not None:
            try:
                box = circles.find(iris.file)
                width, height = image_size(root / iris.file)
            except DataError as error:
                ledger.problems.append(f"{iris.place}: {error}")
                continue
            if box is None:
                ledger.drop("image without an iris circle", iris.file)
                continue
            left, top, right, bottom = box
            by = options.padding
            crop = (left - by, top - by, right + by, bottom + by)
            padded += crop[0] < 0 or crop[1] < 0 or crop[2] > width or crop[3] > height
        yield Sample(
            root / iris.file,
            without_suffix(iris.file),
            BONA_FIDE if iris.kind == BONA_FIDE else ATTACK,
            "test" if options.split == "test" else "",
            (map_file(drawn, options.colour_map),) if drawn else (),
            type=iris.kind,
            crop=crop,
        )
    if options.split == "draw":
        ledger.warnings.append(
            "splits are drawn by image, since the layout does not tell subjects: they may share some"
        )
    ledger.facts["edition"] = 2020 if path.is_dir() else 2025
    if circles is not None:
        ledger.facts |= {"crop_padding": options.padding, "crops_padded_with_black": padded}


def _of_folders(root: Path, options: LivDetIrisOptions, ledger: Ledger) -> Iterator[Iris]:
    own = {_plain(name): kind for name, kind in options.folders.items()}
    unknown: Counter[str] = Counter()
    for file in image_files(root):
        folders = file.split("/")[:-1]
        kind = next((k for name in reversed(folders) if (k := own.get(_plain(name)) or NAMES.get(_plain(name)))), None)
        if kind is None:
            unknown["/".join(folders) or "."] += 1
        else:
            yield Iris(file, kind, str(root / file))
    for folder, count in sorted(unknown.items()):
        name = folder.split("/")[-1]
        ledger.problems.append(
            f"{root / folder}: {counted(count, 'image')} in a folder whose name is no known kind of presentation"
            f"{nearest(_plain(name), NAMES)}; expected one of {', '.join(KINDS)}, or its kind as option "
            f'folders={{"{name}" = "printed"}}'
        )


def _of_list(path: Path, options: LivDetIrisOptions, ledger: Ledger) -> Iterator[Iris]:
    if options.truth is None:
        raise UsageError(
            "truth: is required for a list; expected a file with rows of truth,score,type in the order of the list"
        )
    rows = list(read_rows(path, ("index", "filename")))
    kinds = list(_kinds(options.truth, ledger))
    if len(rows) != len(kinds):
        raise DataError(f"{options.truth}: {len(kinds)} rows; expected {len(rows)}, one for each image of {path}")
    files = Files(path.parent)
    other = 0
    for (place, row), kind in zip(rows, kinds, strict=True):
        file = clean(row["filename"])
        problem = files.problem(file) if file else "empty; expected the path of an image"
        if problem:
            ledger.problems.append(f"{place}, column filename: {problem}")
        elif kind:
            try:
                other += image_size(path.parent / file) != SIZE_2025
            except DataError as error:
                ledger.problems.append(f"{place}, column filename: '{file}': {error}")
                continue
            yield Iris(file, kind, place)
    if other:
        ledger.warnings.append(
            f"{counted(other, 'image')} of another size than the 640 x 480 pixels of the competition"
        )


def _kinds(path: Path, ledger: Ledger) -> Iterator[str]:
    """Yield the kind of each row of truth, score and type; an impossible one is a problem, and ""."""
    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected rows of truth,score,type") from None
    for number, row in enumerate(rows, start=1):
        place = f"{path}, row {number}"
        truth = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}.get(row[0].strip()) if len(row) == 3 else None
        name = row[2].strip() if len(row) == 3 else ""
        if truth is None or not name:
            ledger.problems.append(f"{place}: {','.join(row)!r}; expected truth (0 or 1), score and type")
            yield ""
        elif (truth == 0) != (NAMES.get(_plain(name)) == BONA_FIDE):
            ledger.problems.append(
                f"{place}: truth {row[0]} and type '{name}'; expected 0 for bona fide and 1 for attacks"
            )
            yield ""
        else:
            yield BONA_FIDE if truth == 0 else name


def _circles(path: Path, ledger: Ledger) -> Lookup[tuple[int, int, int, int]]:
    """Return the bounding box of each circle: left, top, right, bottom."""
    boxes = []
    for place, row in read_rows(path, ("filename", "x", "y", "r")):
        try:
            x, y, radius = (float(row[name]) for name in "xyr")
        except ValueError:
            x = y = radius = math.nan
        if not (radius > 0 and math.isfinite(x + y + radius)):
            ledger.problems.append(
                f"{place}: {row['x']}, {row['y']}, {row['r']}; expected x, y and r above 0 in pixels"
            )
            continue
        box = (round(x - radius), round(y - radius), round(x + radius), round(y + radius))
        boxes.append((clean(row["filename"], strip_root=True), box))
    return Lookup(boxes)


IMPORTERS = (
    Importer(
        name="livdet-iris",
        title="LivDet-Iris 2020 and 2025: bona fide irises and presentation attacks",
        request=(
            "Ask the organisers (https://livdet-iris.org: the University of Notre Dame, Clarkson University, others), "
            "who send a release agreement."
        ),
        licence="Research use, by the signed release agreement; no redistribution.",
        Options=LivDetIrisOptions,
        read=read,
        example=list_examples.livdet_iris,
        example_arguments=(
            "{folder}/2020",
            "--set",
            "circles={folder}/circles.csv",
            "--set",
            "maps={folder}/maps",
            "--set",
            "split=draw",
        ),
    ),
)

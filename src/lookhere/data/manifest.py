"""The manifest: which images there are, their labels, splits and saliency maps.

Two forms are read. The rich one has a header, ``image,label,split[,saliency,type,group,weight]``. The field's own is a
bare list, ``split,label,path`` (D-NetPAD, CYBORG, MENTOR, VISER), with maps found by file name in a folder. All that is
wrong with a manifest is told at once, before anything is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from lookhere.data.columns import (
    check_groups,
    check_repeats,
    check_splits,
    positive_class,
    read_classes,
    read_splits,
    read_weights,
)
from lookhere.data.files import Files, clean, maps_by_name
from lookhere.data.table import REQUIRED, UNUSED, Table, read_table
from lookhere.errors import DataError
from lookhere.options import Options

Missing = Literal["skip", "uniform", "borrow", "error"]
Reshape = Literal["none", "dilate", "erode", "box"]


class DataOptions(Options):
    """Where the images are and how they are read."""

    manifest: Path
    """CSV with the header image,label,split[,saliency,type,group,weight], or rows of split,label,path."""
    root: Path | None = None
    """Folder that the paths are relative to; by default the manifest's."""
    size: int = Field(224, ge=16, le=1024)
    """Side in pixels; images are squashed to size × size, as the field's code does."""
    positive: str | None = None
    """Positive class (attack, abnormal); by default the one that is not a usual name of the negative class."""
    splits: dict[str, str] = Field(default_factory=dict)
    """Splits to rename, such as {test = "val"}: the test rows of the CYBORG and MENTOR lists are for validation."""
    bit_depth: int = Field(16, ge=1, le=16)
    """Bits used in 16-bit files: 2**bit_depth - 1 is white, and a value above it is an error."""
    cache: Path | None = None
    """Folder for decoded images; by default lookhere/ in $XDG_CACHE_HOME or ~/.cache. It may be deleted at any time."""
    allow_outside: bool = False
    """Accept paths that leave the root."""

    @field_validator("manifest", "root", "cache")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and path.absolute()  # a run can be used from any folder


class SaliencyOptions(Options):
    """Where the saliency maps are and how they are read."""

    missing: Missing = "skip"
    """Training images without a map: guidance terms skip them, a uniform map (0.5 everywhere) stands in, or the map of
    another training image, drawn anew in each epoch (borrow); or they are an error."""
    folder: Path | None = None
    """Folder in which maps are found by the name of the image, for manifests without a saliency column."""
    suffix: str = ""
    """What follows the image's name in its map's: "_blended" in VISER."""
    normalise: Literal["min-max", "none"] = "min-max"
    """Stretch each map to [0, 1], or leave its values as they are."""
    colour_map: Literal["refuse", "invert"] = "refuse"
    """Maps in the colours of viridis or another monotone colour map: refuse them, or read their values back."""
    source: Literal["given", "flipped", "shuffled", "uniform", "centre"] = "given"
    """Maps that training uses: those given, or a control: reversed (1 - s), another training image's throughout, 0.5
    everywhere, or a Gaussian in the middle. Evaluation uses those given."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training rows with a map whose map is used, drawn by the seed in proportion to classes and types; a
    smaller share lies within a larger one."""
    reshape: Reshape = "none"
    """Maps for training grown (dilate), shrunk (erode), or replaced by the box around all above half of the maximum."""
    radius: int = Field(8, ge=1, le=512)
    """Pixels of data.size by which dilate and erode move the border of a map."""


class Count(NamedTuple):
    """How many images, and how many of them with a map, one type of one class has in one split."""

    split: str
    label: str
    type: str
    images: int
    maps: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """A manifest by columns; row ``i`` is ``image[i]``, ``label[i]`` and so on."""

    path: Path
    root: Path
    classes: tuple[str, ...]
    """In alphabetical order, but the positive class last: of two classes, index 1 is positive."""
    positive: str
    positive_reason: str
    image: list[str]
    """As written: the id of the sample."""
    image_file: list[str]
    """Relative to the root."""
    label: np.ndarray
    """int64 index into ``classes``, -1 = unknown."""
    split: np.ndarray
    """str: train, val, a name that starts with test, or unused where a protocol leaves a row out."""
    saliency: list[str]
    """Map file, relative to the root; "" = none."""
    type: list[str]
    group: list[str]
    weight: np.ndarray
    """float64."""
    line: np.ndarray
    """int64, line of the file on which the row starts."""
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.image)

    def rows(self, split: str) -> np.ndarray:
        """Return the row numbers (int64) of a split."""
        return np.flatnonzero(self.split == split)

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The splits whose names start with test, in alphabetical order."""
        return tuple(name for name in np.unique(self.split).tolist() if name.startswith("test"))

    def image_path(self, row: int) -> Path:
        """Return where the image of a row lies."""
        return self.root / self.image_file[row]

    def saliency_path(self, row: int) -> Path | None:
        """Return where the map of a row lies, or None if it has none."""
        return self.root / self.saliency[row] if self.saliency[row] else None

    def where(self, row: int, column: str) -> str:
        """Return the place of a cell, for messages."""
        return f"{self.path}, row {self.line[row]}, column {column}"

    def counts(self) -> list[Count]:
        """Return images and maps for each split, class and type: train, val, the test splits, then what is unused."""
        names = [*self.classes, ""]  # label -1 is ""
        cells = list(zip(self.split.tolist(), (names[i] for i in self.label), self.type, strict=True))
        images = Counter(cells)
        maps = Counter(cell for cell, file in zip(cells, self.saliency, strict=True) if file)
        order = {"train": 0, "val": 1, UNUSED: 3}
        return [
            Count(*cell, images[cell], maps[cell])
            for cell in sorted(images, key=lambda cell: (order.get(cell[0], 2), cell))
        ]


def read_manifest(
    data: DataOptions,
    saliency: SaliencyOptions,
    *,
    labelled: bool = True,
    classes: Sequence[str] | None = None,
    training: bool = True,
    need_val: bool = True,
) -> Manifest:
    """Read and check a manifest; the images themselves are not opened.

    Args:
        data: where the manifest is.
        saliency: where the maps are.
        labelled: False accepts blank or absent labels (label -1) and splits ("test"), to predict on new images.
        classes: the classes that labels must be among, in their order, the positive one last; by default those found.
        training: ask for what training needs: two classes in train, the same classes elsewhere, wanted maps.
        need_val: ask for val rows too (when ``training``).

    Raises:
        DataError: all problems of the manifest, each with its row and column.
    """
    manifest, problems = survey_manifest(
        data, saliency, labelled=labelled, classes=classes, training=training, need_val=need_val
    )
    if problems:
        raise DataError(problems)
    return manifest


def survey_manifest(
    data: DataOptions,
    saliency: SaliencyOptions,
    *,
    labelled: bool = True,
    classes: Sequence[str] | None = None,
    training: bool = True,
    need_val: bool = True,
) -> tuple[Manifest, list[str]]:
    """Do what ``read_manifest`` does, and return the problems instead of raising them.

    Files that cannot be used are blank in the manifest, so that all others can be looked at none the less.

    Raises:
        DataError: the manifest cannot be read as a table, or is none.
    """
    table = read_table(data.manifest, REQUIRED if labelled else ("image",))
    count = len(table.line)
    blank = [""] * count
    column = {name: table.columns.get(name, blank) for name in ("image", "label", "split", "type", "group")}
    root = data.root or data.manifest.parent
    split = read_splits(column["split"], data.splits, "" if labelled else "test", table)
    training &= labelled
    names = read_classes(column["label"], split, classes, training, table)
    if training:
        check_splits(split, need_val, table)
    positive, reason = positive_class(names, data.positive, classes is not None, table)
    if classes is None:
        names = tuple(sorted(names, key=lambda name: name == positive))
    index = {name: i for i, name in enumerate(names)}
    label = np.fromiter((index.get(name, -1) for name in column["label"]), np.int64, count)
    if labelled:
        for i in (i for i, name in enumerate(column["label"]) if not name):
            table.at(i, "label", "empty; expected the name of a class")

    files = Files(root, data.allow_outside)
    image_file = [clean(path, table.is_list) for path in column["image"]]
    usable = _usable(image_file, "image", "empty; expected the path of an image", files, table)
    maps = _maps(table, saliency, image_file, training)
    if training and saliency.missing == "error":
        for i in (i for i, file in enumerate(maps) if not file and split[i] == "train"):
            table.at(i, "saliency", f"no map for '{column['image'][i]}'; saliency.missing = \"error\" expects one")
    if "saliency" in table.columns:
        maps = _usable(maps, "saliency", "", files, table)
    check_repeats(image_file, column["label"], split, table)
    check_groups(column["group"], split, table)
    weight = read_weights(table.columns.get("weight", blank), table)
    manifest = Manifest(
        path=data.manifest,
        root=root,
        classes=names,
        positive=positive,
        positive_reason=reason,
        image=column["image"],
        image_file=usable,
        label=label,
        split=split,
        saliency=maps,
        type=column["type"],
        group=column["group"],
        weight=weight,
        line=np.array(table.line, np.int64),
        warnings=table.warnings,
    )
    return manifest, table.problems


def _usable(paths: list[str], column: str, empty: str, files: Files, table: Table) -> list[str]:
    """Note what is wrong with files, and return their paths with those blank; ``empty`` is what an empty one means."""
    usable = paths.copy()
    for i, file in enumerate(paths):
        what = files.problem(file) if file else empty
        if what:
            table.at(i, column, what)
            usable[i] = ""
    return usable


def _maps(table: Table, options: SaliencyOptions, images: list[str], training: bool) -> list[str]:
    named = table.columns.get("saliency")
    if named is None:
        return (
            maps_by_name(options.folder, options.suffix, images, training, table)
            if options.folder
            else [""] * len(images)
        )
    if options.folder:
        table.warnings.append(f"{table.path}: saliency.folder is not used, because there is a saliency column")
    return [clean(path) for path in named]

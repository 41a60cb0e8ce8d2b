"""What an importer is, and the one way from its samples to a manifest with aligned maps.

An importer reads a source's own layout and yields samples: an image, its label, and the maps of its annotators as
functions of the image's size. ``import_dataset`` decodes, draws, merges, crops and writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from lookhere.data.importers.labels import from_folders, from_table
from lookhere.data.importers.lookup import Lookup
from lookhere.data.importers.maps import MapMaker
from lookhere.data.importers.pixels import Merge
from lookhere.data.importers.splits import draw_splits
from lookhere.data.importers.writing import MANIFEST, PROVENANCE, fingerprint, is_finished, new_folder, write_dataset
from lookhere.data.manifest import Count, DataOptions, SaliencyOptions, read_manifest
from lookhere.data.table import SPLIT_NAMES, is_split
from lookhere.errors import DataError, UsageError
from lookhere.options import Options


class ImportOptions(Options):
    """What every importer can be told."""

    merge: Merge = "mean"
    """Several annotators of one image: mean, maximum, or 1 where at least half of them have more than 0.5."""
    map_bits: Literal[8, 16] = 8
    """Bits of the maps that are written."""
    observers: bool = False
    """Write each observer's own maps and a manifest of them, too: maps-by-observer/NAME and manifest-NAME.csv."""
    splits: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test among the images without a split, drawn by group and stratified by label."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides the drawn splits."""

    window: int = Field(0, ge=0)
    """Which of a DICOM image's own views is taken: its VOI LUTs, then its windows, counted from 0."""

    @field_validator("splits")
    @classmethod
    def _shares(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) < 0 or shares[0] <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError("expected shares of train (above 0), val and test that add up to 1")
        return shares


class LabelledOptions(ImportOptions):
    """Options of sources that bring maps but no labels."""

    images: Path
    """Folder of the images."""
    table: Path | None = None
    """CSV image,label[,split,type,group,weight]; without it, the folder that an image lies in is its label."""


@dataclass(frozen=True)
class Sample:
    """One image as its source has it."""

    image: Path
    """PNG, JPEG, TIFF, BMP or DICOM (.dcm)."""
    name: str
    """Relative path with ``/`` and without suffix, under which the image and its map are written; unique."""
    label: str
    split: str
    """train, val, a name that starts with test, or "" to be drawn."""
    maps: tuple[MapMaker, ...] = ()
    """One for each annotator; none = no map."""
    observers: tuple[str, ...] = ()
    """Who made each of ``maps``, if the source tells; by default they are numbered from 1."""
    type: str = ""
    group: str = ""
    weight: float = 1.0
    crop: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom in pixels of the upright image. What lies beside it becomes black, and 0 in the maps,
    which are drawn before they are cropped."""


@dataclass
class Ledger:
    """What an importer has to say besides its samples; all of it but the problems goes to ``provenance.json``."""

    facts: dict[str, Any] = field(default_factory=dict)
    """What was read how: sigma, sigma_unit, weighting, coordinate_space, observers."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the source: file, record, value, what was expected; raised together after reading."""
    warnings: list[str] = field(default_factory=list)
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, reason: str, example: str = "", count: int = 1) -> None:
        """Count ``count`` records left out for a reason; the first example is kept."""
        entry = self.dropped.setdefault(reason, {"count": 0, "example": example})
        entry["count"] += count


@dataclass(frozen=True)
class Importer:
    """A source of data: how it is had, how it is read, and what it looks like."""

    name: str
    title: str
    request: str
    """Where and how the data is had, in plain words with the official page."""
    licence: str
    Options: type[ImportOptions]
    read: Callable[[Sequence[Path], Any, Ledger], Iterator[Sample]]
    """Read the paths given on the command line with ``Options``."""
    example: Callable[[Path], None]
    """Write a tiny synthetic folder in the source's own layout."""
    example_arguments: tuple[str, ...]
    """What imports that folder, with ``{folder}`` for its path: ("{folder}", "--set", "images={folder}/images")."""
    extra: str = ""
    """Extra of the package that holds what reading needs: medical, gaze or annotations."""


@dataclass(frozen=True)
class Imported:
    """A finished import."""

    manifest: Path
    counts: list[Count]
    dropped: dict[str, dict[str, Any]]
    """Reason -> count and example."""
    warnings: list[str]
    by_observer: list[Path]
    """The manifests of single observers."""


def labelled_images(options: LabelledOptions, ledger: Ledger) -> list[Sample]:
    """Return the images of a folder with their labels and without maps (``dataclasses.replace`` adds them), by name.

    With a table, its rows say which images there are, as paths below the folder or tails of them. Without one, the
    folder that an image lies in is its label, and a first folder named train, val or test is its split.

    Raises:
        DataError: there is no such folder, no image in it, or the table cannot be read; what is wrong with single
            images or rows is noted in the ledger.
    """
    if options.table is None:
        rows, problems = from_folders(options.images)
    else:
        rows, problems, unlisted = from_table(options.images, options.table)
        for file in unlisted:
            ledger.drop("image not in the table", file)
    ledger.problems += problems
    return sorted((Sample(**row._asdict()) for row in rows), key=lambda sample: sample.name)


def image_lookup(samples: Sequence[Sample], options: LabelledOptions) -> Lookup[Sample]:
    """Return what finds samples by the names that annotation files give their images."""
    return Lookup((sample.image.relative_to(options.images).as_posix(), sample) for sample in samples)


def import_dataset(importer: Importer, paths: Sequence[Path], options: ImportOptions, out: Path) -> Imported:
    """Read a source and write ``manifest.csv``, ``images/``, ``maps/`` and ``provenance.json`` into ``out``.

    With ``options.observers``, also ``manifest-NAME.csv`` and ``maps-by-observer/NAME/`` for each observer.

    Nothing of the source is changed, and ``out`` appears when it is complete. Where it already holds this very import,
    of unchanged files, nothing is done.

    Raises:
        UsageError: ``out`` holds something else, or a package is missing.
        DataError: all problems of the source's records; or all of its images and maps.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: not found; expected a file or folder of {importer.title}")
    named = [value for _, value in options if isinstance(value, Path)]
    identity = {
        "source": importer.name,
        "paths": [str(path) for path in paths],
        "options": options.model_dump(mode="json"),
        "files": fingerprint([*paths, *named], out),
    }
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not is_finished(out, identity):
            raise UsageError(f"--out: {out} holds something else; give a new or empty folder")
        return _imported(out)
    ledger = Ledger()
    try:
        samples = list(importer.read(paths, options, ledger))
    except ModuleNotFoundError as error:
        extra = f"; run: pip install 'lookhere[{importer.extra}]'" if importer.extra else ""
        raise UsageError(f"{importer.name}: needs the package {error.name}, which is not installed{extra}") from None
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror or error})") from None
    problems = [*ledger.problems, *_sample_problems(samples)]
    if not samples and not problems:
        why = "; ".join(f"{reason}: {entry['count']}" for reason, entry in ledger.dropped.items())
        problems = [f"{importer.name}: no images to import" + (f" ({why})" if why else "")]
    if problems:
        raise DataError(problems)
    given = [SPLIT_NAMES.get(sample.split.strip().casefold(), sample.split) for sample in samples]
    drawn = draw_splits(
        [sample.name for sample in samples],
        [sample.label for sample in samples],
        [sample.group for sample in samples],
        given,
        options.splits,
        options.seed,
    )
    ledger.facts["drawn_splits"] = sum(not split for split in given)
    record = {"title": importer.title, "licence": importer.licence, **identity}
    with new_folder(out) as part:
        write_dataset(part, samples, drawn, options, ledger, record)
    return _imported(out)


def _sample_problems(samples: Sequence[Sample]) -> Iterator[str]:
    """Yield what makes samples impossible to write: paths, labels and splits are the source's, and may be anything."""
    first: dict[str, Path] = {}
    for sample in samples:
        parts = sample.name.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\\" in sample.name or "\0" in sample.name:
            yield f"{sample.image}: '{sample.name}' cannot be the name of an image; expected a relative path"
        # Folded, since many disks take a.png and A.png for one file.
        other = first.setdefault(sample.name.casefold(), sample.image)
        if other is not sample.image:
            yield f"{sample.image}: has the name '{sample.name}', as {other} has; expected names that differ"
        if not sample.label.strip():
            yield f"{sample.image}: has no label"
        if sample.split and not is_split(sample.split):
            yield f"{sample.image}: '{sample.split}' is no split; expected train, val or a name that starts with test"


def _imported(out: Path) -> Imported:
    manifest = read_manifest(DataOptions(manifest=out / MANIFEST), SaliencyOptions(), training=False)
    record = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))
    by_observer = [out / one["manifest"] for one in record["by_observer"]]
    return Imported(out / MANIFEST, manifest.counts(), record["dropped"], record["warnings"], by_observer)

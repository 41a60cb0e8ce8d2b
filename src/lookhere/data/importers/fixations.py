"""Fixations from any eye tracker, as tables or EyeLink .asc files, for images whose labels come from elsewhere.

What the numbers of a gaze file mean is not in it: pixels of the screen or of the image, counted from the top or the
bottom, seconds or milliseconds. It is asked for, except for what the maker of a format documents; a file that is read
in the wrong space still gives maps, which guide a network to the wrong place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from lookhere.data.importers.base import Importer, Ledger, Sample, image_lookup, labelled_images
from lookhere.data.importers.eyelink import SHOWN, eyelink_fixations, eyelink_screen
from lookhere.data.importers.fixations_example import write_example
from lookhere.data.importers.gaze import Fixations, GazeOptions, Scale, Size
from lookhere.data.importers.gaze_tables import LAYOUTS, Coordinates, Origin, TimeUnit, table_fixations
from lookhere.data.importers.lookup import short_names
from lookhere.errors import DataError, UsageError, nearest

COLUMNS = ("image", "observer", "event", "x", "y", "duration", "valid")
MILLISECONDS: dict[TimeUnit, float] = {"s": 1e3, "ms": 1, "us": 1e-3, "ns": 1e-6}
PLAUSIBLE = (10, 10_000)
"""Milliseconds that the median fixation lasts; most last 100 to 600."""


class FixationsOptions(GazeOptions):
    """How an export of an eye tracker is read."""

    format: Literal["tobii", "neon", "pupil-core", "gazepoint", "eyelink", "generic"]
    """Which program wrote the files."""
    coordinates: Coordinates
    """Pixels or fractions, of the image or of the screen."""
    weighting: Literal["count", "duration"]
    """A fixation counts as one, or as long as it lasted."""
    origin: Origin | None = None
    """Where y begins; required unless the maker of the format documents it."""
    time_unit: TimeUnit | None = None
    """Unit of durations; required unless the maker of the format documents it."""
    screen: tuple[float, float] | None = None
    """Width and height of the screen in pixels."""
    shown: Literal["fit", "centre"] | tuple[float, float, float, float] | None = None
    """Where on the screen the whole image was: scaled to fit it, at its own size in the middle, or left, top, right and
    bottom in pixels."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of columns that replace the format's: image, observer, event, x, y, duration, valid."""
    image_name: str | None = None
    """Image of files that do not name one; {stem} and {folder} stand for the file's own."""
    image_message: str = SHOWN
    """EyeLink: regular expression for the message that shows an image; its first group is the image's name."""
    eye: Literal["left", "right"] | None = None
    """EyeLink: which eye of a recording of both."""

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in COLUMNS:
                raise ValueError(f"there is no column '{name}'{nearest(name, COLUMNS)} (columns: {', '.join(COLUMNS)})")
        return columns

    @field_validator("image_message")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"'{pattern}' is not a regular expression ({error})") from None
        if not groups:
            raise ValueError(f"'{pattern}' has no group; expected one, such as IMAGE (.+)")
        return pattern

    @model_validator(mode="after")
    def _asked_for(self) -> FixationsOptions:
        """List what is missing, all at once."""
        layout = LAYOUTS[self.format]
        on_screen = self.coordinates.startswith("screen")
        timed = bool(layout.duration) or self.format == "eyelink" or "duration" in self.columns
        spaces = "|".join(layout.positions)
        asked = {
            f"coordinates: {layout.title} gives {spaces} (or name columns.x and columns.y), got {self.coordinates}": (
                spaces and self.coordinates not in layout.positions and not {"x", "y"} <= self.columns.keys()
            ),
            "origin: is required; expected top-left|bottom-left": not (self.origin or layout.origin),
            "time_unit: is required; expected s|ms|us|ns": timed and not (self.time_unit or layout.time_unit),
            "columns.duration: is required with weighting = duration; expected the name of a column": (
                self.weighting == "duration" and not timed
            ),
            "shown: is required for coordinates of the screen; expected fit|centre|[left, top, right, bottom]": (
                on_screen and self.shown is None
            ),
            "screen: is required for coordinates of the screen; expected [width, height] in pixels": (
                on_screen and self.screen is None and self.format != "eyelink"
            ),
            f"screen: expected [width, height] above 0, got {self.screen}": self.screen and min(self.screen) <= 0,
            f"shown: expected [left, top, right, bottom] with left < right and top < bottom, got {self.shown}": (
                isinstance(self.shown, tuple) and (self.shown[0] >= self.shown[2] or self.shown[1] >= self.shown[3])
            ),
        }
        missing = [question for question, is_open in asked.items() if is_open]
        if missing:
            raise ValueError("\n".join(missing))
        return self


def read_fixations(paths: Sequence[Path], options: FixationsOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images with one map for each observer; those that nobody looked at have none.

    Raises:
        UsageError: something has to be asked for that only the files could tell.
        DataError: a file cannot be read.
    """
    samples = labelled_images(options, ledger)
    lookup = image_lookup(samples, options)
    layout = LAYOUTS[options.format]
    fixations = Fixations()
    names: dict[str, Sample | None] = {}
    screen = options.screen
    for file, recording in short_names(_files(paths, layout.files)).items():
        if options.format == "eyelink":
            screen = _screen(file, screen)
            found = eyelink_fixations(file, options.image_message, options.eye, ledger)
        else:
            found = table_fixations(file, layout, options.coordinates, options.columns, ledger)
        for one in found:
            name = one.image or _image_name(file, options)
            if name not in names:
                try:
                    names[name] = lookup.find(name)
                except DataError as error:
                    ledger.problems.append(f"{file}: {error}")
                    names[name] = None
            sample = names[name]
            if sample is None:
                ledger.drop("row of an unknown image", f"{file}: '{name}'")
            elif not (math.isfinite(one.x) and math.isfinite(one.y)):
                ledger.drop("row without a position", f"{file}: '{name}'")
            elif not 0 < one.duration < math.inf:
                ledger.drop("row whose duration is not above 0", f"{file}: '{name}'")
            else:
                # Events are numbered anew in each recording.
                event = one.event and f"{file}: {one.event}"
                fixations.add(sample.name, one.observer or recording, event, one.x, one.y, one.duration)
    unit = options.time_unit or layout.time_unit
    if unit is not None and fixations.count():
        _check_durations(fixations.durations(), unit, ledger)
    origin = options.origin or layout.origin
    ledger.facts.update(coordinate_space=options.coordinates, origin=origin, time_unit=unit, screen=screen)

    def place(x: np.ndarray, y: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray, Scale]:
        return to_image(x, y, size, options, origin == "bottom-left", screen)

    yield from fixations.samples(samples, options, place, options.weighting == "duration", ledger)


def to_image(
    x: np.ndarray,
    y: np.ndarray,
    size: Size,
    options: FixationsOptions,
    from_below: bool,
    screen: tuple[float, float] | None,
) -> tuple[np.ndarray, np.ndarray, Scale]:
    """Return positions in pixels of an image, and how many of its pixels one pixel of the screen covers.

    A fraction f becomes f · width; a position on the screen is mapped by the rectangle in which the image was shown:
    ``(x - left) · width / (right - left)``.

    Args:
        x: n, as the source has them.
        y: n.
        size: (width, height) of the image.
        options: coordinates and ``shown``.
        from_below: y is counted from the lower edge.
        screen: (width, height) in pixels, needed for coordinates of the screen.
    """
    extent: tuple[float, float] = size
    if options.coordinates.startswith("screen"):
        assert screen is not None  # asked for by the options, or found in the file
        extent = screen
    if options.coordinates.endswith("fraction"):
        x, y = x * extent[0], y * extent[1]
    if from_below:
        y = extent[1] - y
    if options.coordinates.startswith("image"):
        return x, y, (1.0, 1.0)
    if isinstance(options.shown, tuple):
        left, top, right, bottom = options.shown
    else:
        factor = min(extent[0] / size[0], extent[1] / size[1]) if options.shown == "fit" else 1.0
        left, top = (extent[0] - factor * size[0]) / 2, (extent[1] - factor * size[1]) / 2
        right, bottom = extent[0] - left, extent[1] - top
    scale = size[0] / (right - left), size[1] / (bottom - top)
    return (x - left) * scale[0], (y - top) * scale[1], scale


def _files(paths: Sequence[Path], patterns: tuple[str, ...]) -> list[Path]:
    files = []
    for path in paths:
        found = sorted({file for pattern in patterns for file in path.rglob(pattern)}) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"{path}: no file named {' or '.join(patterns)} below it; give the files themselves")
        files += found
    return files


def _image_name(file: Path, options: FixationsOptions) -> str:
    if options.image_name is None:
        raise UsageError(
            f"image_name: is required, since {file} does not say which image was looked at; expected a name, in which "
            "{stem} and {folder} stand for the file's own (or name a column with columns.image)"
        )
    return options.image_name.replace("{stem}", file.stem).replace("{folder}", file.parent.name)


def _screen(file: Path, known: tuple[float, float] | None) -> tuple[float, float]:
    found = known or eyelink_screen(file)
    if found is None:
        raise UsageError(f"screen: is required, since {file} has no GAZE_COORDS; expected [width, height] in pixels")
    return found


def _check_durations(durations: np.ndarray, unit: TimeUnit, ledger: Ledger) -> None:
    median = float(np.median(durations)) * MILLISECONDS[unit]
    ledger.facts["median_duration_ms"] = round(median, 3)
    if not PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
        ledger.problems.append(
            f"the median fixation lasts {median:g} ms with time_unit = {unit}; expected {PLAUSIBLE[0]} to "
            f"{PLAUSIBLE[1]:,} ms: is the unit another one (s|ms|us|ns)?"
        )


IMPORTERS = (
    Importer(
        name="fixations",
        title="Fixations of an eye tracker: Tobii, Pupil Labs, EyeLink, Gazepoint, any table",
        request="Your own recordings, exported from the eye tracker's program.",
        licence="That of your data.",
        Options=FixationsOptions,
        read=read_fixations,
        example=write_example,
        example_arguments=(
            "{folder}/recordings",
            *("--set", "images={folder}/images"),
            *("--set", "format=tobii"),
            *("--set", "coordinates=screen-px"),
            *("--set", "screen=[1920, 1080]"),
            *("--set", "shown=fit"),
            *("--set", "weighting=duration"),
            *("--set", "sigma=0.05"),
            *("--set", "sigma_unit=fraction"),
        ),
    ),
)

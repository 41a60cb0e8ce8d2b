"""SALICON's fixations (made of mouse movements), and other fixations in MATLAB files.

A SALICON file holds the struct array ``gaze``, one element for each observer, whose ``fixations`` are ``n 2`` pixels
(x, y), counted from 1 as MATLAB does; in the 2017 edition some lie beyond the edges and belong on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lookhere.data.importers.base import Importer, Ledger, Sample, image_lookup, labelled_images
from lookhere.data.importers.gaze import Fixations, GazeOptions, Scale, Size
from lookhere.data.importers.pixels import image_size
from lookhere.errors import DataError, UsageError, nearest


class SaliconOptions(GazeOptions):
    """How fixations in MATLAB files are read; the defaults are SALICON's."""

    variable: str = "gaze"
    """Variable of the file: a struct array with one element for each observer, or an n x 2 matrix of one observer."""
    field: str = "fixations"
    """Field of the struct that holds the n x 2 matrix."""
    first_pixel: Literal[0, 1] = 1
    """Coordinate of the first pixel."""
    axes: Literal["xy", "yx"] = "xy"
    """Order of the two columns."""
    clip: bool = True
    """Move positions beyond an edge onto it; otherwise they are dropped."""
    skip_first: bool = False
    """Leave out each observer's first fixation, where the eyes rested before the image was shown (MIT1003)."""


def read_mat(paths: Sequence[Path], options: SaliconOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images with one map for each observer; a file belongs to the image of its name."""
    samples = labelled_images(options, ledger)
    lookup = image_lookup(samples, options)
    fixations = Fixations()
    for file in _files(paths):
        try:
            sample = lookup.find(file.stem)
            if sample is None:
                ledger.drop("file without an image of its name", str(file))
                continue
            for observer, points in enumerate(_observers(file, sample.image, options), start=1):
                if options.skip_first and len(points):
                    ledger.drop("first fixation of an observer", str(file))
                    points = points[1:]
                points = points[:, :: 1 if options.axes == "xy" else -1] - options.first_pixel
                for x, y in points.tolist():
                    if math.isfinite(x) and math.isfinite(y):
                        fixations.add(sample.name, str(observer), "", x, y, 1.0)
                    else:
                        ledger.drop("fixation without a position", f"{file}, observer {observer}")
        except DataError as error:
            ledger.problems.append(f"{file}: {error}")
    clipped = 0

    def place(x: np.ndarray, y: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray, Scale]:
        nonlocal clipped
        if options.clip:
            outside = (x < 0) | (y < 0) | (x > size[0] - 1) | (y > size[1] - 1)
            clipped += int(outside.sum())
            x, y = np.clip(x, 0, size[0] - 1), np.clip(y, 0, size[1] - 1)
        return x, y, (1.0, 1.0)

    yield from fixations.samples(samples, options, place, False, ledger)
    ledger.facts.update(coordinate_space="image-px", first_pixel=options.first_pixel, clipped=clipped)
    if 2 * clipped > max(fixations.count(), 1):
        ledger.problems.append(
            f"{', '.join(map(str, paths))}: {clipped} of {fixations.count()} fixations lie outside their image; "
            "expected pixels of the image, x before y (option axes)"
        )


def _files(paths: Sequence[Path]) -> list[Path]:
    files = []
    for path in paths:
        found = sorted(path.rglob("*.mat")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"{path}: no .mat file below it")
        files += found
    return files


def _observers(file: Path, image: Path, options: SaliconOptions) -> list[np.ndarray]:
    """Return the ``n 2`` float64 positions of each observer as written."""
    content = _load(file)
    if options.variable not in content:
        known = [name for name in content if not name.startswith("__")]
        hint = nearest(options.variable, known)
        raise DataError(
            f"no variable '{options.variable}'; it has {', '.join(known) or 'none'}{hint} (option variable)"
        )
    if "resolution" in content:
        recorded = " x ".join(map(str, np.ravel(content["resolution"])[::-1].tolist()))
        actual = " x ".join(map(str, image_size(image)))
        if recorded != actual:
            raise DataError(f"recorded on {recorded} pixels, but {image} has {actual}; expected the same image")
    value = content[options.variable]
    if value.dtype.names is None:
        parts = [value]
    elif options.field in value.dtype.names:
        parts = list(value[options.field].ravel())
    else:
        fields = value.dtype.names
        hint = nearest(options.field, fields)
        raise DataError(
            f"'{options.variable}' has no field '{options.field}'; it has {', '.join(fields)}{hint} (option field)"
        )
    return [_matrix(part) for part in parts]


def _matrix(part: np.ndarray) -> np.ndarray:
    if part.size == 0:
        return np.zeros((0, 2))
    if part.ndim != 2 or part.shape[1] != 2 or part.dtype.kind not in "uif":
        raise DataError(f"positions of shape {' x '.join(map(str, part.shape))} ({part.dtype}); expected n x 2 numbers")
    return part.astype(np.float64)


def _load(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        return dict(loadmat(file))
    except NotImplementedError:
        raise DataError("a MATLAB 7.3 (HDF5) file; save it again in MATLAB with save(…, '-v7')") from None
    except Exception as error:  # SciPy's reader raises about anything on files that are damaged or something else
        raise DataError(f"cannot be read as a MATLAB file ({error})") from None


def _example(folder: Path) -> None:
    """Write ``images/<class>/COCO_train2014_<n>.jpg`` and ``fixations/COCO_train2014_<n>.mat`` of three observers."""
    from scipy.io import savemat

    random = np.random.default_rng(0)
    width, height = 64, 48
    (folder / "fixations").mkdir(parents=True)
    for i in range(12):
        name = f"COCO_train2014_{i:012d}"
        place = folder / "images" / ("indoor", "outdoor")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(place / f"{name}.jpg")
        kinds = [("location", object), ("timestamp", object), ("fixations", object)]
        gaze = np.zeros((3, 1), dtype=kinds)
        for observer in range(3):
            points = np.clip(np.rint(random.normal((width / 2, height / 2), 8, (6, 2))), 1, (width, height))
            gaze[observer, 0] = (points.repeat(3, axis=0), np.arange(18.0)[:, None] * 10, points.astype(np.uint16))
        resolution = np.array([[height, width]], np.uint16)
        savemat(folder / "fixations" / f"{name}.mat", {"image": name, "resolution": resolution, "gaze": gaze})


IMPORTERS = (
    Importer(
        name="salicon",
        title="SALICON, and other fixations in MATLAB files",
        request="Free: http://salicon.net/challenge-2017 (10,000 + 5,000 images); the labels are your own.",
        licence="SALICON's terms on its page; its images are of MS COCO 2014, under Flickr's terms.",
        Options=SaliconOptions,
        read=read_mat,
        example=_example,
        example_arguments=(
            "{folder}/fixations",
            *("--set", "images={folder}/images"),
            *("--set", "sigma=19"),
            *("--set", "sigma_unit=px"),
        ),
    ),
)

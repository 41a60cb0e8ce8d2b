"""Eye Gaze Data for Chest X-rays: one radiologist's fixations on 1,083 radiographs of MIMIC-CXR.

The tracker gives positions as fractions of the *screen*, on which each image was letterboxed:
``x = (FPOGX * 1920 - left) * W / (1920 - left - right)``, and y with 1080, top and bottom, where left, right, top and
bottom are the pads of ``master_sheet.csv``. Taken for fractions of the image, as is sometimes done, all positions are
shifted. ``X_ORIGINAL`` and ``Y_ORIGINAL`` hold the mapped positions in pixels of the original image; they are used
where they are, and every image's pads are checked against them.

Source: Karargyris et al., Scientific Data 8:92 (2021). Its own heat maps count fixations and have sigma = 150 pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from lookhere.data.importers import chest_examples
from lookhere.data.importers.base import Importer, Ledger, Sample
from lookhere.data.importers.maps import MapMaker, SigmaUnit, fixation_map, sigma_pixels
from lookhere.data.importers.physionet import AbnormalOptions, Images, number, one_folder, read_rows
from lookhere.data.importers.pixels import image_size
from lookhere.errors import DataError, UsageError

SCREEN = np.array([1920.0, 1080.0])
DIAGNOSES = ("Normal", "CHF", "pneumonia")
PADS = ("image_left_pad", "image_top_pad", "image_right_pad", "image_bottom_pad")
CALIBRATION = 5  # calibration screens have the id of an image without its last characters
TOLERANCE = 0.02  # of the side: the pads are whole pixels, and the images were shown on a canvas of 1024 rows, not 1080


class EgdCxrOptions(AbnormalOptions):
    """How the labels are made and how the fixations become maps."""

    labels: Literal["diagnosis", "binary", "paper"] = "diagnosis"
    """Normal, CHF or pneumonia; normal or abnormal (CHF or pneumonia); or normal or abnormal by the CheXpert labels
    (``findings``, ``normal``, ``uncertain``)."""
    sigma: float = Field(150.0, gt=0)
    """Standard deviation of a fixation's Gaussian, in ``sigma_unit``."""
    sigma_unit: SigmaUnit = "px"
    """Pixels of the original image, fraction of its width, or degrees of visual angle."""
    pixels_per_degree: float | None = Field(None, gt=0)
    """Pixels of the 1920 x 1080 screen that one degree covers; needed for degrees, since the set does not tell."""
    weighting: Literal["count", "duration"] = "count"
    """Every fixation counts the same, or by its duration (FPOGD)."""


class Fixation(NamedTuple):
    """One fixation: where on the screen (fractions), how long (s), and where in the original image (pixels or NaN)."""

    x: float
    y: float
    duration: float
    original_x: float
    original_y: float


def read(paths: Sequence[Path], options: EgdCxrOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images of ``master_sheet.csv``, in its order, with one map for each session that looked at them."""
    folder = one_folder(paths, "master_sheet.csv")
    if options.sigma_unit == "degrees" and options.pixels_per_degree is None:
        raise UsageError("pixels_per_degree: required for a sigma in degrees; expected pixels of the screen per degree")
    images = Images(options.images or folder)
    wanted = {name: _column(name) for name in (*options.findings, "No Finding")} if options.labels == "paper" else {}
    sheet: dict[str, tuple[str, dict[str, str]]] = {}
    columns = ("dicom_id", "patient_id", *PADS, *DIAGNOSES, *wanted.values())
    for place, row in read_rows(folder / "master_sheet.csv", columns):
        if row["dicom_id"] in sheet:
            ledger.problems.append(f"{place}: dicom_id '{row['dicom_id']}' again; expected one record for each image")
        sheet[row["dicom_id"]] = place, row
    gaze = _read_fixations(folder, set(sheet), ledger)

    found = 0
    tally = _Tally()
    for dicom, (place, row) in sheet.items():
        values = {name: row[column] for name, column in wanted.items()}
        label, kind, reason = options.judge(values) if wanted else _diagnosis(row, options.labels == "binary")
        try:
            image = images.find(dicom)
            found += image is not None
            if image is None or reason:
                ledger.drop(f"image: {reason or 'no file of its name'}", dicom)
                continue
            maps = _maps(gaze.get(dicom, {}), row, image_size(image), options, tally, ledger) if dicom in gaze else ()
        except _Disagreement as error:
            tally.disagreeing.append(f"{place}: {error}")
            ledger.drop("image: its pads and X_ORIGINAL, Y_ORIGINAL disagree", dicom)
            continue
        except DataError as error:
            ledger.problems.append(f"{place}: {error}")
            continue
        if not maps:
            ledger.drop("map: no fixation inside the image", dicom)
        yield Sample(image, dicom, label, "", maps, type=kind, group=row["patient_id"])
    if sheet and not found:
        ledger.problems.append(images.none_of(len(sheet)))
    if len(tally.disagreeing) * 10 > tally.original:  # not a stray image, but other images or another mapping
        ledger.problems += tally.disagreeing
    if tally.outside * 2 > tally.fixations:
        ledger.problems.append(
            f"{folder}: {tally.outside} of {tally.fixations} fixations lie outside their images; expected FPOGX and "
            "FPOGY as fractions (0 to 1) of the screen, and pads in pixels of a screen of 1920 x 1080"
        )
    ledger.facts |= {
        "sigma": options.sigma,
        "sigma_unit": options.sigma_unit,
        "weighting": options.weighting,
        "coordinate_space": "screen fraction, mapped to the image by its pads",
        "images_with_original_coordinates": tally.original,
        "images_smaller_or_larger_than_the_original": tally.resized,
        "fixations_used": tally.fixations - tally.outside,
        "observers": 1,
    }


def to_image(fractions: np.ndarray, pads: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Map fractions of the screen to pixels of an image that was letterboxed on it.

    Args:
        fractions: ``n 2`` (FPOGX, FPOGY).
        pads: left, top, right and bottom in pixels of the screen.
        size: (width, height) of the image.

    Returns:
        ``n 2`` pixels.
    """
    return (fractions * SCREEN - pads[:2]) * (np.array(size) / (SCREEN - pads[:2] - pads[2:]))


class _Disagreement(DataError):
    """The pads of an image and its positions in the original image do not fit."""


@dataclass
class _Tally:
    fixations: int = 0
    outside: int = 0
    original: int = 0
    resized: int = 0
    disagreeing: list[str] = field(default_factory=list)


def _column(finding: str) -> str:
    """Return the column of a CheXpert label: Pleural Effusion -> pleural_effusion__chx."""
    return f"{finding.casefold().replace(' ', '_')}__chx"


def _diagnosis(row: dict[str, str], binary: bool) -> tuple[str, str, str]:
    """Return (label, type, why there is no label)."""
    names = [name for name in DIAGNOSES if number(row[name]) == 1]
    if len(names) != 1:
        return "", "", "not exactly one of Normal, CHF and pneumonia is 1"
    kind = "" if names[0] == "Normal" else names[0]
    return ("abnormal" if kind else "normal") if binary else names[0], kind, ""


def _read_fixations(folder: Path, known: set[str], ledger: Ledger) -> dict[str, dict[str, list[Fixation]]]:
    """Return the fixations by image and session.

    ``eye_gaze.csv`` has a row for each sample, and FPOGD grows within a fixation: its last row has all of it.
    """
    file = next((folder / name for name in ("fixations.csv", "eye_gaze.csv") if (folder / name).is_file()), None)
    if file is None:
        raise DataError(f"{folder}: neither fixations.csv nor eye_gaze.csv is in it; expected one of them")
    ledger.facts["file"] = file.name
    calibrations = {dicom[:-CALIBRATION] for dicom in known}
    latest: dict[tuple[str, str, str], Fixation] = {}
    columns = ("DICOM_ID", "FPOGX", "FPOGY", "FPOGD", "FPOGID", "FPOGV")
    for place, row in read_rows(file, columns, ("SESSION_ID", "X_ORIGINAL", "Y_ORIGINAL")):
        dicom = row["DICOM_ID"]
        names = ("FPOGX", "FPOGY", "FPOGD", "X_ORIGINAL", "Y_ORIGINAL")
        fixation = Fixation(*(number(row.get(name, "")) for name in names))
        if dicom not in known:
            reason = "a calibration screen" if dicom in calibrations else "DICOM_ID is not in master_sheet.csv"
        elif number(row["FPOGV"]) != 1:
            reason = "not valid (FPOGV is not 1)"
        elif not np.isfinite(fixation[:2]).all():
            reason = "FPOGX or FPOGY is not a number"
        elif not 0 < fixation.duration < np.inf:
            reason = "FPOGD is not above 0"
        else:
            key = dicom, row.get("SESSION_ID", ""), row["FPOGID"]
            reason = "an earlier row of the same fixation" if key in latest else ""
            latest[key] = fixation
        if reason:
            ledger.drop(f"fixation: {reason}", place)
    gaze: dict[str, dict[str, list[Fixation]]] = defaultdict(lambda: defaultdict(list))
    for (dicom, session, _), fixation in latest.items():
        gaze[dicom][session].append(fixation)
    return gaze


def _maps(
    sessions: dict[str, list[Fixation]],
    row: dict[str, str],
    size: tuple[int, int],
    options: EgdCxrOptions,
    tally: _Tally,
    ledger: Ledger,
) -> tuple[MapMaker, ...]:
    """Return one map for each session with a fixation inside the image."""
    pads = np.array([number(row[name]) for name in PADS])
    if not (pads >= 0).all() or not (pads[:2] + pads[2:] < SCREEN).all():
        raise DataError(f"pads {[row[name] for name in PADS]}; expected pixels of the screen of 1920 x 1080")
    table = np.array([fixation for session in sessions.values() for fixation in session])
    mapped, original = to_image(table[:, :2], pads, size), table[:, 3:]
    told = np.isfinite(original).all(axis=1)
    # The file has small negative numbers for what is outside: -1 that was scaled with the rest.
    margin = np.where(told, TOLERANCE, 0)[:, None] * size
    inside = ((mapped >= -margin) & (mapped < size + margin) & ~(original < 0)).all(axis=1)
    tally.fixations += len(table)
    tally.outside += int((~inside).sum())
    if not inside.all():
        ledger.drop("fixation: outside the image", row["dicom_id"], int((~inside).sum()))
    tally.original += bool(told.any())
    scale = _original_scale(mapped[inside & told], original[inside & told], size)
    tally.resized += bool((scale != 1).any())
    points = np.where(told[:, None], original / scale, mapped)

    # Pixels of the original, or degrees on the screen, in pixels of this image.
    per_degree = np.array(size) / (SCREEN - pads[:2] - pads[2:]) * (options.pixels_per_degree or np.nan)
    unit = options.sigma_unit
    sigma = [
        sigma_pixels(options.sigma / (scale[axis] if unit == "px" else 1), unit, size[0], per_degree[axis])
        for axis in (0, 1)
    ]
    owner = np.repeat(np.arange(len(sessions)), [len(session) for session in sessions.values()])
    weight = table[:, 2] if options.weighting == "duration" else np.ones(len(table))
    chosen = (inside & (owner == i) for i in range(len(sessions)))
    return tuple(fixation_map(points[i, 0], points[i, 1], weight[i], sigma[0], sigma[1]) for i in chosen if i.any())


def _original_scale(mapped: np.ndarray, original: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return how many pixels of the original one pixel of the image is, in x and y; 1 if they are the same.

    Raises:
        _Disagreement: the mapping by the pads and the positions in the file disagree, whatever the scale.
    """
    weight = (mapped**2).sum(axis=0)
    if not len(mapped) or not weight.all():
        return np.ones(2)
    scale = np.maximum((mapped * original).sum(axis=0) / weight, 1e-6)
    error = np.median(np.abs(original - scale * mapped), axis=0) / (scale * size)
    if (error > TOLERANCE).any() or abs(scale[0] / scale[1] - 1) > 2 * TOLERANCE:
        raise _Disagreement(
            f"the pads and X_ORIGINAL, Y_ORIGINAL disagree by {error.max():.1%} of the side and a scale of "
            f"{scale[0]:.3f} x {scale[1]:.3f}; expected this image of {size[0]} x {size[1]} pixels to be the whole "
            "original, if need be at another size"
        )
    return np.where(np.abs(scale - 1) <= TOLERANCE, 1.0, scale)


IMPORTERS = (
    Importer(
        name="egd-cxr",
        title="Eye Gaze Data for Chest X-rays (one radiologist, 1,083 images)",
        request="PhysioNet, https://physionet.org/content/egd-cxr/1.0.0/: credentialed account, a course on research "
        "with human data, and a signed agreement. The images are those of MIMIC-CXR or MIMIC-CXR-JPG.",
        licence="PhysioNet Credentialed Health Data License: research only, no sharing, no identification of patients",
        Options=EgdCxrOptions,
        read=read,
        example=chest_examples.egd_cxr,
        example_arguments=("{folder}", "--set", "images={folder}/images"),
    ),
)

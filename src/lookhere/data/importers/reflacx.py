"""REFLACX: fixations, ellipses and labels of five radiologists on 2,616 radiographs of MIMIC-CXR.

Readers zoomed, panned and changed the window, so that each fixation has its own pixels per degree and its own visible
part of the image. Its Gaussian (one degree of visual angle, mass = duration) is drawn inside that part only, as the
authors draw theirs. Images read several times (phases 1 and 2) have one map for each reading.

Source: Bigolin Lanfredi et al., Scientific Data 9:350 (2022).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from lookhere.data.importers import chest_examples
from lookhere.data.importers.base import Importer, Ledger, Sample
from lookhere.data.importers.maps import MapMaker, ellipse_map, union
from lookhere.data.importers.physionet import ChestOptions, Images, number, one_folder, read_rows
from lookhere.data.importers.pixels import image_size
from lookhere.errors import DataError, UsageError, nearest

FIRST = (
    *("Airway wall thickening", "Atelectasis", "Consolidation", "Emphysema", "Enlarged cardiac silhouette", "Fibrosis"),
    *("Fracture", "Groundglass opacity", "Mass", "Nodule", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary edema", "Support devices", "Wide mediastinum"),
)
LATER = (
    *("Abnormal mediastinal contour", "Acute fracture", "Atelectasis", "Consolidation", "Enlarged cardiac silhouette"),
    *("Enlarged hilum", "Groundglass opacity", "Hiatal hernia", "High lung volume / emphysema"),
    *("Interstitial lung disease", "Lung nodule or mass", "Pleural abnormality", "Pneumothorax", "Pulmonary edema"),
    "Support devices",
)
FINDINGS = {1: FIRST, 2: LATER, 3: LATER}
"""The labels of each phase without Quality issue and Other, which are no findings."""

RECORD = ("id", "split", "eye_tracking_data_discarded", "dicom_id", "subject_id", "image_size_x", "image_size_y")
BOX = ("xmin", "ymin", "xmax", "ymax")
FIXATION = (
    *("x_position", "y_position", "timestamp_start_fixation", "timestamp_end_fixation"),
    *("angular_resolution_x_pixels_per_degree", "angular_resolution_y_pixels_per_degree"),
    *(f"{name}_shown_from_image" for name in BOX),
)
MARGIN = 0.5  # degrees beside the visible part of the image that the authors still take for a look at it


class ReflacxOptions(ChestOptions):
    """Which maps are drawn, and which readings are abnormal."""

    maps: Literal["gaze", "ellipses"] = "gaze"
    """Fixations, or the ellipses drawn around findings, with certainty / 5 as their value."""
    phases: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
    """Phases of the collection: 1 and 2 have several readings of each image, 3 one."""
    certainty: int = Field(3, ge=1, le=5)
    """Certainty from which a finding counts, for labels and ellipses: 3 possibly, 4 probably, 5 consistent with."""
    findings: tuple[str, ...] = ()
    """Labels that make a reading abnormal; by default all but Quality issue and Other."""
    split: Literal["official", "drawn"] = "official"
    """MIMIC-CXR's split, or one drawn by patient."""
    sigma: float = Field(1.0, gt=0)
    """Standard deviation of a fixation's Gaussian, in degrees of visual angle."""
    weighting: Literal["duration", "count"] = "duration"
    """A fixation weighs as much as it lasts, or every one the same."""


def read(paths: Sequence[Path], options: ReflacxOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images of the chosen phases; abnormal is what at least half of an image's readings call so."""
    folder = one_folder(paths, "main_data/metadata_phase_1.csv")
    known = dict.fromkeys(name for phase in options.phases for name in FINDINGS[phase])
    for name in options.findings:
        if name not in known:
            raise UsageError(f"findings: no label '{name}' in phases {options.phases}{nearest(name, known)}")
    images = Images(options.images or folder)
    main = folder / "main_data" if (folder / "main_data").is_dir() else folder
    readings: dict[str, list[_Reading]] = defaultdict(list)
    for phase in options.phases:
        wanted = [name for name in FINDINGS[phase] if name in (options.findings or known)]
        for place, row in read_rows(main / f"metadata_phase_{phase}.csv", (*RECORD, *wanted)):
            try:
                reading = _Reading(place, main, row, wanted, options)
            except DataError as error:
                ledger.problems.append(f"{place}: {error}")
                continue
            readings[row["dicom_id"]].append(reading)
    found = 0
    tally: Counter[str] = Counter()
    for dicom, group in readings.items():
        first = group[0]
        try:
            image = images.find(dicom)
            found += image is not None
            if image is None:
                ledger.drop("image: no file of its name", dicom)
                continue
            first.check_size(image_size(image))
            if options.maps == "gaze":
                maps = tuple(maker for one in group for maker in one.gaze(options, tally, ledger))
            else:
                maps = _ellipses(group, options, ledger)
        except DataError as error:
            ledger.problems.append(f"{first.place}: {error}")
            continue
        if not maps:
            ledger.drop("map: no reading has one", dicom)
        label, kind = _verdict(group)
        split = first.split if options.split == "official" else ""
        yield Sample(image, dicom, label, split, maps, type=kind, group=first.subject)
    if readings and not found:
        ledger.problems.append(images.none_of(len(readings)))
    if tally["outside"] * 2 > tally["fixations"]:
        ledger.problems.append(
            f"{main}: {tally['outside']} of {tally['fixations']} fixations lie outside the visible part of their image;"
            " expected x_position and y_position in pixels of the original image"
        )
    ledger.facts |= {
        "maps": options.maps,
        "sigma": options.sigma,
        "sigma_unit": "degrees",
        "weighting": options.weighting,
        "coordinate_space": "pixels of the original image",
        "readings": sum(map(len, readings.values())),
        "observers": max(map(len, readings.values()), default=0),
        "fixations_used": tally["fixations"] - tally["outside"],
    }


class _Reading:
    """One radiologist's reading of one image."""

    def __init__(self, place: str, main: Path, row: dict[str, str], wanted: list[str], options: ReflacxOptions) -> None:
        self.place, self.id = place, row["id"]
        self.folder = main / self.id
        if not self.id.isalnum():
            raise DataError(f"id '{self.id}'; expected letters and digits, such as P300R123456")
        self.subject, self.split = row["subject_id"], row["split"]
        self.size = np.array([number(row["image_size_x"]), number(row["image_size_y"])])
        if not (self.size >= 1).all():
            raise DataError(f"image size '{row['image_size_x']}' x '{row['image_size_y']}'; expected pixels")
        self.discarded = _truth(row["eye_tracking_data_discarded"])
        self.present = [name for name in wanted if _truth(row[name]) or number(row[name]) >= options.certainty]
        self.wanted = wanted

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse an image that is not the whole original, if need be at another size."""
        if abs(size[0] * self.size[1] / (size[1] * self.size[0]) - 1) > 0.02:
            was = "{:g} x {:g}".format(*self.size)
            raise DataError(f"the image has {size[0]} x {size[1]} pixels; expected the whole original of {was}")

    def gaze(self, options: ReflacxOptions, tally: Counter[str], ledger: Ledger) -> Iterator[MapMaker]:
        """Yield the map of the fixations, if any is left."""
        if self.discarded:
            ledger.drop("map of a reading: its eye tracking was discarded", self.id)
            return
        kept = []
        for place, row in read_rows(self.folder / "fixations.csv", FIXATION):
            x, y, start, end, *rest = (number(row[name]) for name in FIXATION)
            per_degree, low, high = np.array(rest).reshape(3, 2)
            beside = np.maximum(np.maximum(low - (x, y), (x, y) - high), 0) / per_degree
            if not np.isfinite((x, y)).all():
                reason = "no position"
            elif not (per_degree > 0).all() or not (high > low).all():
                reason = "no pixels per degree, or nothing of the image was visible"
            elif not 0 < end - start < np.inf:
                reason = "it does not end after its start"
            else:
                reason = "outside the visible part of the image" if np.hypot(*beside) > MARGIN else ""
                tally["fixations"] += 1
                tally["outside"] += bool(reason)
            if reason:
                ledger.drop(f"fixation: {reason}", place)
            else:
                weight = end - start if options.weighting == "duration" else 1.0
                kept.append((x, y, weight, *(options.sigma * per_degree), *low, *high))
        if kept:
            yield visible_fixation_map(np.array(kept), (self.size[0], self.size[1]))
        else:
            ledger.drop("map of a reading: no fixation is left", self.id)

    def ellipses(self, options: ReflacxOptions, ledger: Ledger) -> MapMaker | None:
        """Return the map of the ellipses, or None if there is none."""
        path = self.folder / "anomaly_location_ellipses.csv"
        makers = []
        # A reading without findings has an empty file.
        rows = read_rows(path, (*BOX, "certainty"), self.wanted) if not path.exists() or path.stat().st_size else ()
        for place, row in rows:
            box = np.array([number(row[name]) for name in BOX]).reshape(2, 2)
            certainty = number(row["certainty"])
            if not (box[1] > box[0]).all() or not np.isfinite(box).all() or not 0 <= certainty <= 5:
                raise DataError(f"{place}: ellipse {row}; expected xmin < xmax, ymin < ymax and a certainty of 0 to 5")
            if certainty < options.certainty:
                ledger.drop(f"ellipse: certainty below {options.certainty}", place)
            elif options.findings and not any(_truth(row.get(name, "")) for name in self.wanted):
                ledger.drop("ellipse: none of the findings", place)
            else:
                makers.append(_ellipse(box, certainty / 5, self.size))
        return union(*makers) if makers else None


def visible_fixation_map(fixations: np.ndarray, original: tuple[float, float]) -> MapMaker:
    """Return the sum of Gaussians that each end where the visible part of the image did, divided by its maximum.

    Args:
        fixations: ``n 9``: x, y, mass, sigma_x, sigma_y, then xmin, ymin, xmax and ymax of the visible part, all
            lengths in pixels of the original image.
        original: (width, height) of the original image; the map may be asked for at another size.
    """
    x, y, mass, sigma_x, sigma_y, xmin, ymin, xmax, ymax = fixations.T

    def profile(length: int, scale: float, *lengths: np.ndarray) -> np.ndarray:
        place, (centre, sigma, low, high) = np.arange(length), (column[:, None] * scale for column in lengths)
        visible = (place >= np.rint(low)) & (place < np.rint(high))
        return np.where(visible, np.exp(-0.5 * ((place - centre) / sigma) ** 2), 0)

    def make(width: int, height: int) -> np.ndarray:
        across = profile(width, width / original[0], x, sigma_x, xmin, xmax)
        down = profile(height, height / original[1], y, sigma_y, ymin, ymax)
        total = (down * (mass / (sigma_x * sigma_y))[:, None]).T @ across
        return np.asarray(total / (total.max() or 1), np.float32)

    return make


def _ellipse(box: np.ndarray, value: float, original: np.ndarray) -> MapMaker:
    def make(width: int, height: int) -> np.ndarray:
        corners = box * ((width, height) / original)
        return ellipse_map(*corners.mean(axis=0), *((corners[1] - corners[0]) / 2))(width, height) * np.float32(value)

    return make


def _ellipses(group: list[_Reading], options: ReflacxOptions, ledger: Ledger) -> tuple[MapMaker, ...]:
    """Return one map for each reading, blank for those that marked nothing; none if no reading marked anything."""
    makers = [one.ellipses(options, ledger) for one in group]
    return tuple(maker or union() for maker in makers) if any(makers) else ()


def _verdict(group: list[_Reading]) -> tuple[str, str]:
    """Return (label, type) by the vote of the readings, ties being abnormal."""
    half = len(group) / 2
    if sum(bool(one.present) for one in group) < half or not any(one.present for one in group):
        return "normal", ""
    votes = Counter(name for one in group for name in one.present)
    agreed = [name for name, count in votes.items() if count >= half]
    return "abnormal", agreed[0] if len(agreed) == 1 else "several findings"


def _truth(text: str) -> bool:
    return text.strip().casefold() == "true"


IMPORTERS = (
    Importer(
        name="reflacx",
        title="REFLACX (five radiologists, 2,616 chest X-rays)",
        request="PhysioNet, https://physionet.org/content/reflacx-xray-localization/1.0.0/: account and signed "
        "agreement. The images are those of MIMIC-CXR or MIMIC-CXR-JPG.",
        licence="PhysioNet Restricted Health Data License: research only, no sharing, no identification of patients",
        Options=ReflacxOptions,
        read=read,
        example=chest_examples.reflacx,
        example_arguments=("{folder}", "--set", "images={folder}/images"),
    ),
)

"""Writes tiny chest sets in the exact layouts of PhysioNet, for documentation and tests.

Everything is drawn here: the pictures show ellipses on noise, the ids are numbers in order, and no row is anybody's.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# The header of each table, in the order of the source.
MASTER = (
    "dicom_id,path,study_id,patient_id,stay_id,gender,anchor_age,image_top_pad,image_bottom_pad,image_left_pad,"
    "image_right_pad," + ",".join(f"dx{i},dx{i}_icd" for i in range(1, 10)) + ",normal_reports,Normal,CHF,pneumonia,"
    "consolidation,enlarged_cardiac_silhouette,linear__patchy_atelectasis,lobar__segmental_collapse,"
    "not_otherwise_specified_opacity___pleural__parenchymal_opacity__,pleural_effusion_or_thickening,"
    "pulmonary_edema__hazy_opacity,normal_anatomically,elevated_hemidiaphragm,hyperaeration,vascular_redistribution,"
    "atelectasis__chx,cardiomegaly__chx,consolidation__chx,edema__chx,enlarged_cardiomediastinum__chx,fracture__chx,"
    "lung_lesion__chx,lung_opacity__chx,no_finding__chx,pleural_effusion__chx,pleural_other__chx,pneumonia__chx,"
    "pneumothorax__chx,support_devices__chx,cxr_exam_indication"
)
GAZE = (
    "SESSION_ID,MEDIA_ID,DICOM_ID,CNT,Time (in secs),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV,BPOGX,"
    "BPOGY,BPOGV,LPCX,LPCY,LPD,LPS,LPV,RPCX,RPCY,RPD,RPS,RPV,BKID,BKDUR,BKPMIN,LPMM,LPMMV,RPMM,RPMMV,SACCADE_MAG,"
    "SACCADE_DIR,VID_FRAME,X_ORIGINAL,Y_ORIGINAL"
)
CHEXPERT = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
REFLACX = "id,split,eye_tracking_data_discarded,image,dicom_id,subject_id,image_size_x,image_size_y"
PHASE_1 = (
    "Airway wall thickening,Atelectasis,Consolidation,Emphysema,Enlarged cardiac silhouette,Fibrosis,Fracture,"
    "Groundglass opacity,Mass,Nodule,Other,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary edema,"
    "Quality issue,Support devices,Wide mediastinum"
)
PHASE_2 = (
    "Abnormal mediastinal contour,Acute fracture,Atelectasis,Consolidation,Enlarged cardiac silhouette,Enlarged hilum,"
    "Groundglass opacity,Hiatal hernia,High lung volume / emphysema,Interstitial lung disease,Lung nodule or mass,"
    "Other,Pleural abnormality,Pneumothorax,Pulmonary edema,Support devices"
)
FIXATIONS = (
    "timestamp_start_fixation,timestamp_end_fixation,x_position,y_position,pupil_area_normalized,"
    "angular_resolution_x_pixels_per_degree,angular_resolution_y_pixels_per_degree,window_width,window_level,"
    "xmin_shown_from_image,ymin_shown_from_image,xmax_shown_from_image,ymax_shown_from_image,"
    "xmin_in_screen_coordinates,ymin_in_screen_coordinates,xmax_in_screen_coordinates,ymax_in_screen_coordinates"
)
ELLIPSES = "xmin,ymin,xmax,ymax,certainty"
PATIENTS = 24
PORTRAIT, LANDSCAPE = (250, 305), (305, 250)  # a tenth of what is usual
SCREEN = (1920, 1080)


class Radiograph(NamedTuple):
    """A drawn chest, and where its finding is: centre and radii in pixels; none if it is normal."""

    pixels: np.ndarray
    finding: tuple[float, float, float, float] | None


def draw(rng: np.random.Generator, size: tuple[int, int], finding: str) -> Radiograph:
    """Draw two dark lungs on grey; an opacity in one of them, a large heart ("CHF", "Cardiomegaly"), or nothing."""
    width, height = size
    y, x = np.mgrid[:height, :width]

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return ((x - cx * width) / (rx * width)) ** 2 + ((y - cy * height) / (ry * height)) ** 2 <= 1

    grey = 150 + 12 * rng.standard_normal((height, width))
    grey[ellipse(0.3, 0.45, 0.16, 0.32) | ellipse(0.7, 0.45, 0.16, 0.32)] -= 90
    large = finding in ("CHF", "Cardiomegaly")
    grey[ellipse(0.55, 0.62, 0.22 if large else 0.1, 0.14)] += 60
    place = None
    if large:
        place = (0.55 * width, 0.62 * height, 0.22 * width, 0.14 * height)
    elif finding:
        cx, cy = rng.choice([0.3, 0.7]) + rng.uniform(-0.05, 0.05), rng.uniform(0.3, 0.6)
        grey[ellipse(cx, cy, 0.09, 0.08)] += 70
        place = (cx * width, cy * height, 0.09 * width, 0.08 * height)
    return Radiograph(np.clip(grey, 0, 255).astype(np.uint8), place)


def egd_cxr(folder: Path) -> None:
    """Write an example of egd-cxr 1.0.0 with ``images/<dicom_id>.jpg``, a tenth of the originals' size."""
    rng = np.random.default_rng(0)
    sheet: list[dict[str, object]] = []
    gaze: list[dict[str, object]] = []
    for number in range(PATIENTS):
        diagnosis = ("Normal", "CHF", "pneumonia")[number % 3]
        dicom, size = _dicom_id(number), PORTRAIT if number % 4 else LANDSCAPE
        radiograph = draw(rng, size, diagnosis.removeprefix("Normal"))
        _save(radiograph.pixels, folder / "images" / f"{dicom}.jpg")
        left, top = _letterbox(size)
        chexpert = {"Normal": "no_finding__chx", "CHF": "cardiomegaly__chx", "pneumonia": "pneumonia__chx"}[diagnosis]
        record: dict[str, object] = {
            "dicom_id": dicom,
            "path": f"files/p{_subject(number)[:2]}/p{_subject(number)}/s{_study(number)}/{dicom}.dcm",
            "study_id": _study(number),
            "patient_id": _subject(number),
            "anchor_age": "20 - 30",
            "cxr_exam_indication": 'Drawn by lookhere, "not" a patient,\nhence no indication.',
        }
        record |= {"image_top_pad": top, "image_bottom_pad": top, "image_left_pad": left, "image_right_pad": left}
        sheet.append(record | dict.fromkeys(("Normal", "CHF", "pneumonia"), "0") | {diagnosis: "1", chexpert: "1.0"})
        for step in range(8):
            point = _look(rng, radiograph, size)
            gaze.append(_egd_row(dicom, len(gaze), point, size, (left, top), rng.uniform(0.1, 0.6)))
            gaze[-1]["FPOGV"] = "0" if step == 6 else "1"
        gaze.append(_egd_row(dicom, len(gaze), (-8, 20), size, (left, top), 0.2))  # beside the image
    for _ in range(3):
        gaze.append(_egd_row(_dicom_id(0)[:-5], len(gaze), (100, 100), PORTRAIT, _letterbox(PORTRAIT), 0.5))
    _table(folder / "master_sheet.csv", MASTER, sheet)
    _table(folder / "fixations.csv", GAZE, gaze)


def _egd_row(
    dicom: str,
    number: int,
    point: tuple[float, float],
    size: tuple[int, int],
    pads: tuple[int, int],
    duration: float,
) -> dict[str, object]:
    shown = SCREEN[0] - 2 * pads[0], SCREEN[1] - 2 * pads[1]
    screen = [(point[axis] * shown[axis] / size[axis] + pads[axis]) / SCREEN[axis] for axis in (0, 1)]
    inside = 0 <= point[0] < size[0] and 0 <= point[1] < size[1]
    original = (10 * point[0], 10 * point[1]) if inside else (-10 * size[0] / shown[0], -10 * size[1] / shown[1])
    row: dict[str, object] = {"SESSION_ID": "1", "DICOM_ID": dicom, "CNT": number, "FPOGID": number, "FPOGV": "1"}
    row |= {"FPOGX": f"{screen[0]:.5f}", "FPOGY": f"{screen[1]:.5f}", "FPOGS": number, "FPOGD": f"{duration:.5f}"}
    return row | {"X_ORIGINAL": int(original[0]), "Y_ORIGINAL": int(original[1])}


def reflacx(folder: Path) -> None:
    """Write an example of REFLACX 1.0.0 with ``images/<dicom_id>.jpg``: phase 1 has two readings of each image."""
    rng = np.random.default_rng(1)
    device, heart = "Support devices", "Enlarged cardiac silhouette"
    kinds = ("", "Atelectasis", heart, device, "", "Atelectasis", "", heart)
    splits = (*["train"] * 4, *["validate"] * 2, *["test"] * 2)
    for phase, labels in ((1, PHASE_1), (2, PHASE_2), (3, PHASE_2)):
        readings = []
        for number in range((phase - 1) * 8, phase * 8):
            kind, size = kinds[number % 8], PORTRAIT if number % 3 else LANDSCAPE
            radiograph = draw(rng, size, "Cardiomegaly" if kind == heart else kind)
            dicom = _dicom_id(number)
            _save(radiograph.pixels, folder / "images" / f"{dicom}.jpg")
            image = f"files/p10/p{_subject(number)}/s{_study(number)}/{dicom}.dcm"
            for reader in range(2 if phase == 1 else 1):
                name, discarded = f"P{phase}0{reader}R{number:06d}", (number, reader) == (1, 1)
                record: dict[str, object] = {label: 4 if label == kind else 0 for label in labels.split(",")}
                record |= {"Other": "", device: kind == device} | ({"Quality issue": False} if phase == 1 else {})
                ids = (name, splits[number % 8], discarded, image, dicom, _subject(number), *size)
                readings.append(record | dict(zip(REFLACX.split(","), ids, strict=True)))
                place = folder / "main_data" / name
                if not discarded:
                    fixations = [_reflacx_row(rng, step, radiograph, size) for step in range(10)]
                    _table(place / "fixations.csv", FIXATIONS, fixations, "\r\n")
                ellipses: list[dict[str, object]] = []
                if radiograph.finding and kind != device:
                    cx, cy, rx, ry = radiograph.finding
                    edges = (round(cx - rx), round(cy - ry), round(cx + rx), round(cy + ry))
                    ellipses.append({label: label == kind for label in labels.split(",")})
                    ellipses[0] |= dict(zip(ELLIPSES.split(","), (*edges, 4), strict=True))
                _table(place / "anomaly_location_ellipses.csv", f"{ELLIPSES},{labels}", ellipses, "\r\n")
        _table(folder / "main_data" / f"metadata_phase_{phase}.csv", f"{REFLACX},{labels}", readings, "\r\n")


def _reflacx_row(
    rng: np.random.Generator, step: int, radiograph: Radiograph, size: tuple[int, int]
) -> dict[str, object]:
    """Return a fixation; from the fifth on the reader has zoomed in, and the last one is on a button."""
    x, y = _look(rng, radiograph, size)
    zoom = 2 if step >= 5 else 1
    width, height = size[0] / zoom, size[1] / zoom
    left, top = np.clip(x - width / 2, 0, size[0] - width), np.clip(y - height / 2, 0, size[1] - height)
    start = step * 0.7 - 0.2
    return {
        "timestamp_start_fixation": f"{start:.3f}",
        "timestamp_end_fixation": f"{start + rng.uniform(0.1, 0.6):.3f}",
        "x_position": round(left) - 60 if step == 9 else round(x),
        "y_position": round(y),
        "pupil_area_normalized": "1.0",
        "angular_resolution_x_pixels_per_degree": 26 // zoom,
        "angular_resolution_y_pixels_per_degree": 26 // zoom,
        "xmin_shown_from_image": round(left),
        "ymin_shown_from_image": round(top),
        "xmax_shown_from_image": round(left + width),
        "ymax_shown_from_image": round(top + height),
    }


def mimic_cxr(folder: Path) -> None:
    """Write an example of MIMIC-CXR-JPG 2.0.0: three images (PA, AP, lateral) of each patient."""
    rng = np.random.default_rng(2)
    split, labels, metadata = [], [], []
    for number in range(PATIENTS):
        subject, study = _subject(number), _study(number)
        ids = {"subject_id": subject, "study_id": study}
        finding = ("", "Pneumonia", "Cardiomegaly", "", "Fracture", "Lung Opacity")[number % 6]
        value = "-1.0" if number == 7 else "1.0"
        labels.append({**ids, finding or "No Finding": value})
        part = "train" if number < 14 else "validate" if number < 18 else "test"
        for n, view in enumerate(("PA", "AP", "LATERAL")):
            dicom = _dicom_id(3 * number + n)
            pixels = draw(rng, PORTRAIT, finding.removeprefix("Fracture")).pixels
            _save(pixels, folder / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg")
            split.append({"dicom_id": dicom, **ids, "split": part})
            metadata.append({"dicom_id": dicom, **ids, "ViewPosition": view, "Rows": 305, "Columns": 250})
    _table(folder / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", split)
    _table(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", f"subject_id,study_id,{CHEXPERT}", labels)
    _table(folder / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, metadata)


def _look(rng: np.random.Generator, radiograph: Radiograph, size: tuple[int, int]) -> tuple[float, float]:
    """Return a position near the finding, or anywhere in the chest."""
    if radiograph.finding and rng.random() < 0.8:
        cx, cy, rx, ry = radiograph.finding
        x, y = cx + rng.normal(0, rx / 2), cy + rng.normal(0, ry / 2)
    else:
        x, y = rng.uniform(0.15, 0.85) * size[0], rng.uniform(0.15, 0.8) * size[1]
    return float(np.clip(x, 1, size[0] - 2)), float(np.clip(y, 1, size[1] - 2))


def _letterbox(size: tuple[int, int]) -> tuple[int, int]:
    """Return the pads (left = right, top = bottom) of an image shown as large as the screen allows."""
    scale = min(SCREEN[0] / size[0], SCREEN[1] / size[1])
    return round((SCREEN[0] - scale * size[0]) / 2), round((SCREEN[1] - scale * size[1]) / 2)


def _dicom_id(number: int) -> str:
    return "-".join(f"{number:08x}" for _ in range(5))


def _subject(number: int) -> str:
    return str(10_000_001 + number)


def _study(number: int) -> str:
    return str(50_000_001 + number)


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90)


def _table(path: Path, header: str, rows: Iterable[Mapping[str, object]], end: str = "\n") -> None:
    """Write a CSV file (packed if its name ends in .gz); values that a row lacks stay blank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, header.split(","), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    # Without the time in the packed file, the same example has the same bytes.
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)

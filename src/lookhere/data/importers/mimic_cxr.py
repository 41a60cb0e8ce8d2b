"""MIMIC-CXR and MIMIC-CXR-JPG: CheXpert labels, the official split, patients as groups.

The paper draws its chest images from here: abnormal is a radiograph with atelectasis, cardiomegaly, pleural effusion,
lung opacity, pneumonia, edema or support devices. It does not say which are normal, how uncertain labels are read,
which views are taken and which patients are tested: these are options, and what is chosen goes into the provenance.
There are no maps; ``egd-cxr`` and ``reflacx`` have them for a part of the images. ``exclude`` leaves out the patients
of such an import, so that a test set shares none with it.

The JPEG files are histogram-equalised, and DICOM is not: one source for training and test, never both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from lookhere.data.importers import chest_examples
from lookhere.data.importers.base import Importer, Ledger, Sample
from lookhere.data.importers.physionet import AbnormalOptions, Images, one_folder, read_rows
from lookhere.data.table import read_table
from lookhere.errors import DataError

VIEW = ("dicom_id", "ViewPosition")
RECORD = ("dicom_id", "study_id", "subject_id", "split")


class MimicCxrOptions(AbnormalOptions):
    """Which images are taken, and how their labels are made."""

    labeller: Literal["chexpert", "negbio"] = "chexpert"
    """Which program's labels of the reports are read."""
    views: tuple[str, ...] = ("AP", "PA")
    """ViewPosition of the images taken (frontal by default, as in egd-cxr and REFLACX); [] takes all."""
    split: Literal["official", "drawn"] = "official"
    """MIMIC-CXR's split, or one drawn by patient."""
    exclude: Path | None = None
    """Manifest whose groups are patients to leave out: those of an import of egd-cxr or reflacx."""


def read(paths: Sequence[Path], options: MimicCxrOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images of the split file that have a file, a view that is asked for, and a label."""
    folder = one_folder(paths, "mimic-cxr-2.0.0-split.csv.gz")
    excluded = _groups(options.exclude) if options.exclude else set()
    labels = {}
    names = (*options.findings, "No Finding")
    for _, row in read_rows(_table(folder, options.labeller), ("subject_id", "study_id", *names)):
        labels[row["subject_id"], row["study_id"]] = options.judge(row)
    views = {}
    if options.views:
        views = {row["dicom_id"]: row["ViewPosition"] for _, row in read_rows(_table(folder, "metadata"), VIEW)}
    images = Images(options.images or folder)

    found = records = 0
    for place, row in read_rows(_table(folder, "split"), RECORD):
        records += 1
        dicom, subject, study = row["dicom_id"], row["subject_id"], row["study_id"]
        label, kind, reason = labels.get((subject, study), ("", "", "its study has no labels"))
        if options.views and views.get(dicom) not in options.views:
            reason = "another view"
        if subject in excluded:
            reason = "a patient of the excluded manifest"
        try:
            image = images.find(dicom)
        except DataError as error:
            ledger.problems.append(f"{place}: {error}")
            continue
        found += image is not None
        if image is None or reason:
            ledger.drop(f"image: {reason or 'no file of its name'}", dicom)
            continue
        # As in the source: at most 1,000 patients or so in a folder.
        name = f"p{subject[:2]}/p{subject}/s{study}/{dicom}"
        yield Sample(image, name, label, row["split"] if options.split == "official" else "", type=kind, group=subject)
    if records and not found:
        ledger.problems.append(images.none_of(records))
    ledger.facts |= {
        "abnormal": f"any of {', '.join(options.findings)}",
        "normal": "No Finding and not abnormal" if options.normal == "no-finding" else "not abnormal",
        "uncertain": options.uncertain,
        "labeller": options.labeller,
        "views": list(options.views) or "all",
        "split": options.split,
        "excluded_patients": len(excluded),
    }


def _table(folder: Path, what: str) -> Path:
    """Return a table of the release, packed or not, whatever the release's number."""
    found = [path for end in ("csv.gz", "csv") for path in sorted(folder.glob(f"mimic-cxr-*-{what}.{end}"))]
    if not found:
        raise DataError(f"{folder}: no mimic-cxr-2.0.0-{what}.csv.gz is in it; expected it beside the other tables")
    if len({path.name.removesuffix(".gz") for path in found}) > 1:
        raise DataError(f"{folder}: {found[0].name} and {found[1].name} are in it; expected one release")
    return found[0]


def _groups(manifest: Path) -> set[str]:
    groups = set(read_table(manifest).columns.get("group", [])) - {""}
    if not groups:
        raise DataError(f"{manifest}: no groups in it; expected a manifest with patients in its column group")
    return groups


IMPORTERS = (
    Importer(
        name="mimic-cxr",
        title="MIMIC-CXR and MIMIC-CXR-JPG (377,110 chest X-rays, labels of reports)",
        request="PhysioNet, https://physionet.org/content/mimic-cxr-jpg/: credentialed account, a course on research "
        "with human data, and a signed agreement. The tables of labels and splits are those of MIMIC-CXR-JPG.",
        licence="PhysioNet Credentialed Health Data License: research only, no sharing, no identification of patients",
        Options=MimicCxrOptions,
        read=read,
        example=chest_examples.mimic_cxr,
        example_arguments=("{folder}",),
    ),
)

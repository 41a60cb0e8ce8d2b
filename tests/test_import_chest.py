"""The chest importers: their examples can be trained on; MIMIC-CXR, and what the paper calls abnormal."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from chest import EGD, MIMIC, REFLACX, cut, example, rewrite, rows, run
from lookhere.data.importers.base import Importer, import_dataset
from lookhere.data.importers.physionet import AbnormalOptions, read_rows
from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest
from lookhere.errors import DataError


@pytest.mark.parametrize("importer", [EGD, REFLACX, MIMIC], ids=lambda importer: importer.name)
def test_examples_become_sets_to_train_on(tmp_path: Path, importer: Importer) -> None:
    folder = example(importer, tmp_path)
    options = dict(pair.split("=") for pair in importer.example_arguments[2::2])
    options = {name: value.format(folder=folder) for name, value in options.items()}
    imported = import_dataset(importer, [folder], importer.Options(**options), tmp_path / "out")
    manifest = read_manifest(DataOptions(manifest=imported.manifest), SaliencyOptions())  # as training reads it
    assert set(np.unique(manifest.split)) == {"train", "val", "test"}
    patients = {split: {manifest.group[i] for i in manifest.rows(split)} for split in ("train", "val", "test")}
    assert not patients["train"] & (patients["val"] | patients["test"])
    assert any(manifest.saliency) == (importer is not MIMIC)


SEVEN = ("Atelectasis", "Cardiomegaly", "Edema", "Lung Opacity", "Pleural Effusion", "Pneumonia", "Support Devices")


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        *(({}, {finding: "1.0"}, ("abnormal", finding)) for finding in SEVEN),
        ({}, {"No Finding": "1.0"}, ("normal", "")),
        # CheXpert counts an image with nothing but a device as No Finding; for the paper it is abnormal.
        ({}, {"No Finding": "1.0", "Support Devices": "1.0"}, ("abnormal", "Support Devices")),
        ({}, {"Edema": "1.0", "Pneumonia": "1"}, ("abnormal", "several findings")),
        ({}, {"Fracture": "1.0"}, ("", "")),
        ({"normal": "rest"}, {"Fracture": "1.0"}, ("normal", "")),
        ({}, {"Edema": "0.0"}, ("", "")),
        ({}, {"Edema": "-1.0", "No Finding": "1.0"}, ("", "")),
        ({}, {"Edema": "-1.0", "Pneumonia": "1.0"}, ("abnormal", "Pneumonia")),
        ({"uncertain": "positive"}, {"Edema": "-1.0"}, ("abnormal", "Edema")),
        ({"uncertain": "negative", "normal": "rest"}, {"Edema": "-1.0"}, ("normal", "")),
        ({"findings": ("Fracture",)}, {"Fracture": "1.0"}, ("abnormal", "Fracture")),
        ({}, {"Edema": "2.0"}, ("", "")),
    ],
)
def test_what_the_paper_calls_abnormal(
    options: dict[str, object], values: dict[str, str], expected: tuple[str, str]
) -> None:
    blank = dict.fromkeys((*SEVEN, "No Finding", "Fracture"), "")
    label, kind, reason = AbnormalOptions(**options).judge(blank | values)
    assert (label, kind) == expected
    assert bool(reason) == (not label)


def test_mimic_joins_its_tables(tmp_path: Path) -> None:
    folder = example(MIMIC, tmp_path)
    rewrite(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", lambda r: None if r["subject_id"] == "10000004" else r)
    imported = run(MIMIC, folder)
    made = {Path(row["image"]).stem: row for row in rows(imported.manifest)}
    split = {row["dicom_id"]: row for row in rows(folder / "mimic-cxr-2.0.0-split.csv.gz")}
    view = {row["dicom_id"]: row["ViewPosition"] for row in rows(folder / "mimic-cxr-2.0.0-metadata.csv.gz")}
    for dicom, row in made.items():
        assert row["group"] == split[dicom]["subject_id"]
        assert row["split"] == split[dicom]["split"].replace("validate", "val")
        assert view[dicom] != "LATERAL"
    patients = [name for name in ("abnormal", "normal") for row in made.values() if row["label"] == name]
    assert len(patients) == len(made) == 36
    dropped = {reason: entry["count"] for reason, entry in imported.dropped.items()}
    assert dropped["image: its study has no labels"] == 2
    assert dropped["image: another view"] == 24
    assert len(rows(run(MIMIC, folder, views=[]).manifest)) == 36 * 3 // 2


def test_patients_of_another_import_are_left_out(tmp_path: Path) -> None:
    trained = run(EGD, example(EGD, tmp_path))
    rewrite(trained.manifest, lambda row: row if row["group"] < "10000013" else None)
    folder = example(MIMIC, tmp_path)
    imported = run(MIMIC, folder, exclude=trained.manifest)
    assert min(row["group"] for row in rows(imported.manifest)) == "10000013"
    rewrite(trained.manifest, lambda row: row | {"group": ""})
    with pytest.raises(DataError, match="no groups in it; expected a manifest with patients"):
        run(MIMIC, folder, exclude=trained.manifest)


BROKEN_MIMIC = {
    "no labels": (lambda f: next(f.glob("*chexpert*")).unlink(), r"no mimic-cxr-2\.0\.0-chexpert\.csv\.gz is in it"),
    "not packed": (
        lambda f: next(f.glob("*split*")).write_bytes(b"dicom_id,split\n"),
        r"split\.csv\.gz: cannot be read \(Not a gzipped file",
    ),
    "cut": (lambda f: cut(next(f.glob("*chexpert*"))), r"chexpert\.csv\.gz: cannot be read \(Compressed file ended"),
    "no files": (lambda f: shutil.rmtree(f / "files"), "none of the 72 images is in it"),
    "split": (
        lambda f: rewrite(next(f.glob("*split*")), lambda r: r | {"split": "tset"}),
        "'tset' is no split",
    ),
    "releases": (
        lambda f: shutil.copy(next(f.glob("*split*")), f / "mimic-cxr-2.1.0-split.csv.gz"),
        "expected one release",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MIMIC)
def test_broken_copies_of_mimic(tmp_path: Path, case: str) -> None:
    folder = example(MIMIC, tmp_path)
    damage, message = BROKEN_MIMIC[case]
    damage(folder)
    with pytest.raises(DataError, match=message):
        run(MIMIC, folder)


def test_ids_stay_text_and_records_may_span_lines(tmp_path: Path) -> None:
    text = 'Subject-ID,note,x\r\n0010000032,"two\nlines, one ""record""",1\r\n\r\n,short,\r\n'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = list(read_rows(tmp_path / "a.csv", ("subject_id",), ("missing", "x")))
    assert [row for _, row in found] == [{"subject_id": "0010000032", "x": "1"}, {"subject_id": "", "x": ""}]
    assert [place.rsplit(" ")[-1] for place, _ in found] == ["2", "5"]
    (tmp_path / "a.csv").write_text(text + "1,2\r\n")
    with pytest.raises(DataError, match="row 6: 2 fields; expected 3"):
        list(read_rows(tmp_path / "a.csv", ("subject_id",)))

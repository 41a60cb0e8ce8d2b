"""The importer of egd-cxr on its example, on broken copies of it, and against maps drawn the slow way."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chest import EGD, ONE, cut, example, facts, gaussians, rewrite, rows, run, saliency
from lookhere.data.importers.egd_cxr import to_image
from lookhere.errors import DataError, UsageError


def test_screen_fractions_are_mapped_by_the_pads() -> None:
    # A portrait image of 2544 x 3056, letterboxed to 899 x 1080: the middle, the upper left corner, the right edge.
    pads = np.array([510.0, 0.0, 511.0, 0.0])
    fractions = np.array([(959.5 / 1920, 0.5), (510 / 1920, 0.0), (1409 / 1920, 0.25)])
    np.testing.assert_allclose(to_image(fractions, pads, (2544, 3056)), [(1272, 1528), (0, 0), (2544, 764)])


def original_size(folder: Path, factor: float) -> Path:
    """Tell the positions in originals of ``factor`` times the size that the example tells."""

    def change(row: dict[str, str]) -> dict[str, str]:
        return row | {name: repr(float(row[name]) * factor) for name in ("X_ORIGINAL", "Y_ORIGINAL")}

    rewrite(folder / "fixations.csv", change)
    return folder


def looks(folder: Path, dicom: str) -> list[tuple[float, float, float]]:
    """Return the (x, y, duration) that count, read independently."""
    return [
        (float(row["X_ORIGINAL"]), float(row["Y_ORIGINAL"]), float(row["FPOGD"]))
        for row in rows(folder / "fixations.csv")
        if row["DICOM_ID"] == dicom and row["FPOGV"] == "1" and float(row["X_ORIGINAL"]) >= 0
    ]


@pytest.mark.parametrize(
    ("options", "sigma"),
    [
        ({"sigma": 15}, (15, 15)),
        ({"sigma": 15, "weighting": "duration"}, (15, 15)),
        ({"sigma": 0.1, "sigma_unit": "fraction"}, (25, 25)),
        # 885 of the screen's 1920 columns and all 1080 rows show the image of 250 x 305.
        ({"sigma": 1.5, "sigma_unit": "degrees", "pixels_per_degree": 40}, (60 * 250 / 886, 60 * 305 / 1080)),
    ],
)
def test_egd_maps_are_sums_of_gaussians(tmp_path: Path, options: dict[str, object], sigma: tuple[float, float]) -> None:
    folder = original_size(example(EGD, tmp_path), 0.1)
    imported = run(EGD, folder, map_bits=16, **options)
    found = looks(folder, ONE)
    assert len(found) == 7
    duration = options.get("weighting") == "duration"
    expected = gaussians((250, 305), [(x, y, d if duration else 1, *sigma) for x, y, d in found])
    np.testing.assert_allclose(saliency(imported, ONE) / 65535, expected, atol=1e-5)


def test_case_27_what_is_left_out_is_counted(tmp_path: Path) -> None:
    folder = example(EGD, tmp_path)
    changes = iter([{"FPOGX": "nan"}, {"FPOGD": "0"}, {"FPOGD": "-1"}, {"DICOM_ID": "unknown"}, {"FPOGY": ""}])
    rewrite(folder / "fixations.csv", lambda row: row | (next(changes, {}) if row["FPOGV"] == "1" else {}))
    rewrite(folder / "fixations.csv", lambda row: None if row["DICOM_ID"] == ONE and row["FPOGV"] == "1" else row)
    (folder / "images" / f"{'-'.join(['00000002'] * 5)}.jpg").unlink()
    imported = run(EGD, folder)
    assert {reason: entry["count"] for reason, entry in imported.dropped.items()} == {
        "fixation: FPOGX or FPOGY is not a number": 2,
        "fixation: FPOGD is not above 0": 2,
        "fixation: DICOM_ID is not in master_sheet.csv": 1,
        "fixation: a calibration screen": 3,
        "fixation: not valid (FPOGV is not 1)": 24,
        "fixation: outside the image": 22,
        "image: no file of its name": 1,
        "map: no fixation inside the image": 1,
    }


def test_samples_of_eye_gaze_give_the_maps_of_the_fixations(tmp_path: Path) -> None:
    folder = example(EGD, tmp_path)
    expected = saliency(run(EGD, folder, weighting="duration"), ONE)
    whole = rows(folder / "fixations.csv")
    samples = [
        row | {"FPOGD": str(float(row["FPOGD"]) * part), "X_ORIGINAL": row["X_ORIGINAL"] if part == 1 else "3"}
        for row in whole
        for part in (0.3, 0.7, 1)
    ]
    (folder / "fixations.csv").rename(folder / "eye_gaze.csv")
    with (folder / "eye_gaze.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([name.lower().replace("_", "-") for name in whole[0]])
        writer.writerows(row.values() for row in samples)
    imported = run(EGD, folder, weighting="duration")
    np.testing.assert_array_equal(saliency(imported, ONE), expected)
    assert imported.dropped["fixation: an earlier row of the same fixation"]["count"] == 2 * 24 * 8


def test_copies_of_any_size_have_the_same_maps(tmp_path: Path) -> None:
    folder = example(EGD, tmp_path)
    expected = saliency(run(EGD, folder), ONE)
    for path in (folder / "images").iterdir():
        image = Image.open(path)
        image.resize((image.width * 2, image.height * 2)).save(path)
    twice = run(EGD, folder)
    np.testing.assert_allclose(saliency(twice, ONE)[::2, ::2], expected, atol=3)
    assert facts(twice)["images_smaller_or_larger_than_the_original"] == 24

    original = run(EGD, original_size(folder, 0.2), sigma=30)
    np.testing.assert_allclose(saliency(original, ONE), saliency(twice, ONE), atol=3)
    assert facts(original)["images_smaller_or_larger_than_the_original"] == 0


def test_cropped_images_contradict_their_fixations(tmp_path: Path) -> None:
    folder = example(EGD, tmp_path)
    for count, path in enumerate([folder / "images" / f"{ONE}.jpg", *(folder / "images").iterdir()]):
        image = Image.open(path)
        image.crop((0, 0, image.width, image.height * 2 // 3)).save(path)
        if count == 0:
            dropped = run(EGD, folder).dropped
            assert dropped["image: its pads and X_ORIGINAL, Y_ORIGINAL disagree"]["count"] == 1
    with pytest.raises(DataError, match=r"master_sheet\.csv, row 4: the pads and X_ORIGINAL, Y_ORIGINAL disagree"):
        run(EGD, folder)


def test_without_original_coordinates_the_pads_map(tmp_path: Path) -> None:
    folder = example(EGD, tmp_path)
    expected = saliency(run(EGD, folder), ONE)
    rewrite(folder / "fixations.csv", lambda row: {k: v for k, v in row.items() if not k.endswith("_ORIGINAL")})
    np.testing.assert_allclose(saliency(run(EGD, folder, sigma=15), ONE), expected, atol=3)
    # Pixels of the screen where fractions are expected: everything lies outside.
    rewrite(folder / "fixations.csv", lambda row: row | {"FPOGX": str(float(row["FPOGX"]) * 1920)})
    with pytest.raises(DataError, match=r"192 of 192 fixations lie outside their images; expected FPOGX and FPOGY as"):
        run(EGD, folder)


def test_sessions_are_observers(tmp_path: Path) -> None:
    folder = original_size(example(EGD, tmp_path), 0.1)
    sessions = {ONE: iter("12" * 9)}
    rewrite(folder / "fixations.csv", lambda row: row | {"SESSION_ID": next(sessions.get(row["DICOM_ID"], iter("1")))})
    found = looks(folder, ONE)
    owner = [0, 1, 0, 1, 0, 1, 1]  # the seventh of eight fixations is not valid
    halves = [
        gaussians((250, 305), [(x, y, 1, 15, 15) for (x, y, _), who in zip(found, owner, strict=True) if who == half])
        for half in (0, 1)
    ]
    for merge, expected in (("mean", sum(halves) / 2), ("union", np.maximum(*halves))):
        merged = saliency(run(EGD, folder, sigma=15, merge=merge), ONE)
        np.testing.assert_allclose(merged / 255, expected, atol=0.6 / 255)


def test_egd_labels(tmp_path: Path) -> None:
    folder = example(EGD, tmp_path)

    def counts(**options: object) -> dict[tuple[str, str], int]:
        found: Counter[tuple[str, str]] = Counter()
        for count in run(EGD, folder, **options).counts:
            found[count.label, count.type] += count.images
        return found

    assert counts() == {("Normal", ""): 8, ("CHF", "CHF"): 8, ("pneumonia", "pneumonia"): 8}
    assert counts(labels="binary") == {("normal", ""): 8, ("abnormal", "CHF"): 8, ("abnormal", "pneumonia"): 8}
    paper = {("normal", ""): 8, ("abnormal", "Cardiomegaly"): 8, ("abnormal", "Pneumonia"): 8}
    assert counts(labels="paper") == paper
    assert counts(labels="paper", findings=("Pneumonia",)) == {("normal", ""): 8, ("abnormal", "Pneumonia"): 8}


def test_dicom_images(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="DICOM needs the extra [medical]")
    from lookhere.data.dicom import read_dicom
    from test_dicom import dataset, save

    folder = example(EGD, tmp_path)
    plain = run(EGD, folder)
    for path in list((folder / "images").iterdir()):
        pixels = np.asarray(Image.open(path)).astype(int) * 16
        made = dataset(4095 - pixels, PhotometricInterpretation="MONOCHROME1")
        made.Rows, made.Columns = pixels.shape
        save(path.with_suffix(".dcm"), made)
        path.unlink()
    imported = run(EGD, folder)
    image = np.asarray(Image.open(imported.manifest.parent / "images" / f"{ONE}.png"))
    np.testing.assert_array_equal(image, read_dicom(folder / "images" / f"{ONE}.dcm")[0])
    brighter = np.asarray(Image.open(plain.manifest.parent / "images" / f"{ONE}.jpg")).astype(float)
    np.testing.assert_allclose(image / 65535, brighter * 16 / 4095, atol=1e-5)
    np.testing.assert_array_equal(saliency(imported, ONE), saliency(plain, ONE))
    save(folder / "images" / f"{ONE}.dcm", dataset(pixels, NumberOfFrames=3))
    with pytest.raises(DataError, match=r"row 4: .*3 frames; expected a file with one"):
        run(EGD, folder)


BROKEN_EGD = {
    "no fixations": (lambda f: (f / "fixations.csv").unlink(), "neither fixations.csv nor eye_gaze.csv is in it"),
    "no sheet": (lambda f: (f / "master_sheet.csv").unlink(), r"master_sheet\.csv: cannot be read \(No such file"),
    "cut sheet": (lambda f: cut(f / "master_sheet.csv"), r"master_sheet\.csv, row 48: .*(not valid CSV|fields; expe)"),
    "no column": (
        lambda f: rewrite(f / "fixations.csv", lambda r: {k.replace("FPOGX", "FPOGXX"): v for k, v in r.items()}),
        "0 columns 'FPOGX'; expected one; did you mean 'FPOGXX'?",
    ),
    "twice": (
        lambda f: rewrite(f / "master_sheet.csv", lambda r: r | {"dicom_id": ONE}),
        rf"row 4: dicom_id '{ONE}' again",
    ),
    "bad pads": (
        lambda f: rewrite(f / "master_sheet.csv", lambda r: r | {"image_left_pad": "1900"}),
        r"row 2: pads \['1900', .*expected pixels of the screen",
    ),
    "no images": (lambda f: shutil.rmtree(f / "images") or (f / "images").mkdir(), "none of the 24 images is in it"),
    "two files": (
        lambda f: shutil.copy(f / "images" / f"{ONE}.jpg", f / "images" / f"{ONE}.jpeg"),
        rf"row 4: image {ONE}: .*{ONE}\.jpeg and .* have its name; expected one file",
    ),
    "no image": (lambda f: (f / "images" / f"{ONE}.jpg").write_bytes(b"GIF89a"), "row 4: not a readable image"),
    "latin": (
        lambda f: (f / "fixations.csv").write_bytes((f / "fixations.csv").read_bytes() + b"\xe9\n"),
        r"fixations\.csv: not UTF-8",
    ),
}


@pytest.mark.parametrize("case", BROKEN_EGD)
def test_broken_copies_of_egd(tmp_path: Path, case: str) -> None:
    folder = example(EGD, tmp_path)
    damage, message = BROKEN_EGD[case]
    damage(folder)
    with pytest.raises(DataError, match=message):
        run(EGD, folder)
    assert not list(folder.parent.glob(f"{folder.name}-*"))


def test_degrees_need_the_geometry(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pixels_per_degree: required for a sigma in degrees"):
        run(EGD, example(EGD, tmp_path), sigma_unit="degrees")

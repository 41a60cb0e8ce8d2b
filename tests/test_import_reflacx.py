"""The importer of REFLACX on its example, on broken copies of it, and against maps drawn the slow way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chest import ONE, REFLACX, example, gaussians, rewrite, rows, run, saliency
from lookhere.errors import DataError, UsageError


@pytest.mark.parametrize("weighting", ["duration", "count"])
def test_reflacx_maps_end_where_the_image_did(tmp_path: Path, weighting: str) -> None:
    folder = example(REFLACX, tmp_path)
    number = 17  # phase 3, portrait
    dicom = "-".join([f"{number:08x}"] * 5)
    parts = []
    for row in rows(folder / "main_data" / f"P300R{number:06d}" / "fixations.csv"):
        x, y = float(row["x_position"]), float(row["y_position"])
        box = [float(row[f"{edge}_shown_from_image"]) for edge in ("xmin", "ymin", "xmax", "ymax")]
        degree = float(row["angular_resolution_x_pixels_per_degree"])
        lasted = float(row["timestamp_end_fixation"]) - float(row["timestamp_start_fixation"])
        if x >= box[0] - degree / 2:
            mass = lasted if weighting == "duration" else 1
            parts.append((x, y, mass / (2 * math.pi * degree * degree), degree, degree, *box))
    assert len(parts) == 9
    assert len({part[5:] for part in parts}) > 1  # zoomed
    imported = run(REFLACX, folder, weighting=weighting, map_bits=16)
    np.testing.assert_allclose(saliency(imported, dicom) / 65535, gaussians((250, 305), parts), atol=1e-5)


def test_reflacx_resized_copies_have_the_same_maps(tmp_path: Path) -> None:
    folder = example(REFLACX, tmp_path)
    before = [saliency(run(REFLACX, folder, maps=maps), ONE) for maps in ("gaze", "ellipses")]
    for path in (folder / "images").iterdir():
        image = Image.open(path)
        image.resize((image.width * 2, image.height * 2)).save(path)
    after = [saliency(run(REFLACX, folder, maps=maps), ONE) for maps in ("gaze", "ellipses")]
    for one, other in zip(before, after, strict=True):
        assert np.mean(np.abs(other[::2, ::2] - one) > 8) < 0.01
    path = folder / "images" / f"{ONE}.jpg"
    Image.open(path).crop((0, 0, 200, 200)).save(path)
    with pytest.raises(DataError, match=r"phase_1\.csv, row \d+: the image has 200 x 200 pixels; expected the whole"):
        run(REFLACX, folder)


def test_reflacx_ellipses_have_their_certainty(tmp_path: Path) -> None:
    folder = example(REFLACX, tmp_path)
    first, second = (folder / "main_data" / f"P10{reader}R000001/anomaly_location_ellipses.csv" for reader in (0, 1))
    box = {"xmin": "50", "ymin": "100", "xmax": "90", "ymax": "220"}
    rewrite(first, lambda row: row | box | {"certainty": "3"})
    second.write_bytes(b"")
    v, u = np.mgrid[:305, :250] + 0.5
    inside = ((u - 70) / 20) ** 2 + ((v - 160) / 60) ** 2 <= 1
    expected = {"mean": 0.3, "union": 0.6, "agreement": 1.0}
    for merge, value in expected.items():
        found = saliency(run(REFLACX, folder, maps="ellipses", merge=merge), ONE)
        np.testing.assert_allclose(found / 255, inside * value, atol=0.51 / 255)
    imported = run(REFLACX, folder, maps="ellipses", certainty=4)
    assert imported.dropped["ellipse: certainty below 4"]["count"] == 1
    assert not list(imported.manifest.parent.glob(f"maps/{ONE}.png"))
    rewrite(first, lambda row: row | {"xmax": "20"})
    with pytest.raises(DataError, match=r"anomaly_location_ellipses\.csv, row 2: ellipse .*expected xmin < xmax"):
        run(REFLACX, folder, maps="ellipses")


def test_reflacx_labels_are_the_vote_of_the_readings(tmp_path: Path) -> None:
    folder = example(REFLACX, tmp_path)
    votes = {
        0: ({}, {"Mass": "2"}),  # below the certainty asked for
        2: ({"Enlarged cardiac silhouette": "0"}, {}),  # one of two
        3: ({"Mass": "5"}, {"Mass": "3"}),  # and a device
        4: ({"Quality issue": "True", "Other": "odd|shape"}, {}),  # no findings
    }

    def change(row: dict[str, str]) -> dict[str, str]:
        return row | votes.get(int(row["id"][5:]), ({}, {}))[int(row["id"][3])]

    rewrite(folder / "main_data" / "metadata_phase_1.csv", change)
    for findings, expected in (
        ((), ["", "Atelectasis", "Enlarged cardiac silhouette", "several findings", ""]),
        (("Mass", "Support devices"), ["", "", "", "several findings", ""]),
        (("Mass",), ["", "", "", "Mass", ""]),
    ):
        made = rows(run(REFLACX, folder, findings=findings).manifest)
        assert [row["type"] for row in made[:5]] == expected
        assert [row["label"] for row in made[:5]] == ["abnormal" if kind else "normal" for kind in expected]
        assert [row["split"] for row in made[:8]] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    with pytest.raises(UsageError, match=r"findings: no label 'Masss' in phases .*; did you mean 'Mass'\?"):
        run(REFLACX, folder, findings=("Masss",))


BROKEN_REFLACX = {
    "no fixations": (
        lambda f: (f / "main_data/P200R000009/fixations.csv").unlink(),
        r"phase_2\.csv, row 3: .*P200R000009/fixations\.csv: cannot be read \(No such file",
    ),
    "no phase": (lambda f: (f / "main_data/metadata_phase_3.csv").unlink(), r"phase_3\.csv: cannot be read"),
    "traversal": (
        lambda f: rewrite(f / "main_data/metadata_phase_2.csv", lambda r: r | {"id": "../../secret"}),
        r"phase_2\.csv, row 2: id '\.\./\.\./secret'; expected letters and digits",
    ),
    "split": (
        lambda f: rewrite(f / "main_data/metadata_phase_2.csv", lambda r: r | {"split": "tset"}),
        "'tset' is no split",
    ),
    "size": (
        lambda f: rewrite(f / "main_data/metadata_phase_2.csv", lambda r: r | {"image_size_x": ""}),
        r"row 2: image size '' x '\d+'; expected pixels",
    ),
    "fractions": (
        lambda f: [
            rewrite(path, lambda r: r | {"x_position": str(float(r["x_position"]) + 5000)})
            for path in f.glob("main_data/*/fixations.csv")
        ],
        "310 of 310 fixations lie outside the visible part",
    ),
}


@pytest.mark.parametrize("case", BROKEN_REFLACX)
def test_broken_copies_of_reflacx(tmp_path: Path, case: str) -> None:
    folder = example(REFLACX, tmp_path)
    damage, message = BROKEN_REFLACX[case]
    damage(folder)
    with pytest.raises(DataError, match=message):
        run(REFLACX, folder)

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookhere.errors import DataError
from manifest_files import HEADER, Rows, cell, load, make_rows, write


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return make_rows(tmp_path)


def test_rich_form(tmp_path: Path, rows: Rows) -> None:
    rows[0][3] = ""
    extra = [[*row, "print" if row[1] == "attack" else "", f"person {i}", "0.5"] for i, row in enumerate(rows)]
    manifest = load(write(tmp_path, extra, [*HEADER, "type", "group", "weight"]))
    assert manifest.classes == ("real", "attack")
    assert manifest.positive == "attack"
    assert manifest.label.tolist() == [0, 1] * 6
    assert manifest.rows("train").tolist() == [0, 1, 2, 3, 4, 5]
    assert manifest.test_splits == ("test", "test_print")
    assert manifest.saliency_path(0) is None
    assert manifest.saliency_path(1) == tmp_path / "map1.png"
    assert manifest.weight.tolist() == [0.5] * 12
    assert manifest.counts()[:2] == [("train", "attack", "print", 3, 3), ("train", "real", "", 3, 2)]
    assert [count.split for count in manifest.counts()] == [
        name for name in ("train", "val", "test", "test_print") for _ in range(2)
    ]
    assert not manifest.warnings


def test_rows_are_counted_in_lines(tmp_path: Path, rows: Rows) -> None:
    (tmp_path / rows[0][0]).rename(tmp_path / "two\nlines.png")
    rows[0][0] = "two\nlines.png"
    rows[11][2] = "tset"
    with pytest.raises(DataError, match="row 14, column split: 'tset'"):  # its number is 13, but row 2 has two lines
        load(write(tmp_path, rows))


def test_all_problems_at_once(tmp_path: Path, rows: Rows) -> None:
    cell(2, 0, "gone.png")(rows)
    cell(3, 2, "tset")(rows)
    cell(4, 3, "gone.png")(rows)
    rows[8].pop()
    weighted = [[*row, "heavy" if i == 6 else ""] for i, row in enumerate(rows)]
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, weighted, [*HEADER, "weight"]), positive="atack")
    found = str(caught.value)
    for part in ["row 2, column image", "row 3, column split", "row 4, column saliency", "row 10: 4 fields"]:
        assert part in found
    assert "row 8, column weight: 'heavy'" in found
    assert "data.positive is 'atack'" in found
    rows[:] = [[f"{i}.png", "real", "train", ""] for i in range(100)]
    with pytest.raises(DataError, match="in all"):
        load(write(tmp_path, rows))


def test_splits_are_renamed_where_asked(tmp_path: Path, rows: Rows) -> None:
    for row in rows:
        row[2] = row[2].replace("val", "Testing")
    path = write(tmp_path, rows)
    assert load(path, splits={"TESTING": "valid"}).rows("val").tolist() == [6, 7]
    with pytest.raises(DataError, match="'val' to 'dev'"):
        load(path, splits={"val": "dev"}, need_val=False)


def test_maps_by_name(tmp_path: Path, rows: Rows) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    for row in rows[1:]:
        Image.new("L", (20, 20)).save(folder / f"{row[0][:-4]}_blended.jpg")
    bare = write(tmp_path, [[row[2], row[1], row[0]] for row in rows], None)
    found = load(bare, {"folder": folder, "suffix": "_blended"})
    assert found.saliency_path(0) is None
    assert found.saliency_path(1) == folder / "attack1_blended.jpg"
    with pytest.raises(DataError, match=r"row 1, column saliency: no map for 'real0.png'"):
        load(bare, {"folder": folder, "suffix": "_blended", "missing": "error"})
    with pytest.raises(DataError, match="followed by '_heat'"):
        load(bare, {"folder": folder, "suffix": "_heat"})


def test_case_26_maps_that_fit_two_images(tmp_path: Path, rows: Rows) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    for row in rows:
        Image.new("L", (20, 20)).save(folder / f"{row[0][:-4]}_blended.jpg")
    (tmp_path / "b").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "b" / "attack1.png")
    Image.new("L", (20, 20)).save(folder / "attack3_blended.png")
    twice = [[row[2], row[1], row[0]] for row in rows] + [["train", "attack", "b/attack1.png"]]
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, twice, None), {"folder": folder, "suffix": "_blended"})
    assert "row 13, column image: 'b/attack1.png' and 'attack1.png' (row 2) share the map" in str(caught.value)
    assert "row 4, column image: 'attack3.png' has 2 maps" in str(caught.value)


def test_case_21_missing_maps_are_an_error_where_asked(tmp_path: Path, rows: Rows) -> None:
    rows[9][3] = ""
    assert load(write(tmp_path, rows), {"missing": "error"}).saliency[9] == ""
    rows[1][3] = ""
    path = write(tmp_path, rows)
    assert load(path).saliency[1] == ""
    with pytest.raises(DataError, match=r"row 3, column saliency: no map for 'attack1.png'"):
        load(path, {"missing": "error"})
    for row in rows:
        row[3] = ""
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, rows), {"missing": "error"})
    assert [problem.split(", ")[1] for problem in caught.value.problems] == [f"row {i}" for i in range(2, 8)]


@pytest.mark.parametrize(
    ("labels", "asked", "positive"),
    [
        (("Live", "Spoof"), None, "Spoof"),
        (("Synthetic", "Real"), None, "Synthetic"),
        (("Bona_Fide", "Attack"), None, "Attack"),
        (("cat", "dog"), None, "dog"),
        (("real", "normal"), None, "real"),
        (("cat", "dog"), "cat", "cat"),
    ],
)
def test_positive_class(tmp_path: Path, rows: Rows, labels: tuple[str, str], asked: str | None, positive: str) -> None:
    for i, row in enumerate(rows):
        row[1] = labels[i % 2]
    manifest = load(write(tmp_path, rows), positive=asked)
    assert manifest.positive == manifest.classes[-1] == positive
    assert [manifest.classes[i] for i in manifest.label] == [row[1] for row in rows]


def test_prediction_needs_no_labels(tmp_path: Path, rows: Rows) -> None:
    bare = write(tmp_path, [[row[0]] for row in rows], ["image"])
    manifest = load(bare, labelled=False, classes=("real", "attack"), training=False)
    assert manifest.label.tolist() == [-1] * 12
    assert set(manifest.split) == {"test"}
    assert manifest.classes == ("real", "attack")
    assert manifest.counts() == [("test", "", "", 12, 0)]
    with pytest.raises(DataError, match="no column 'label'"):
        load(bare)
    with pytest.raises(DataError, match=r"'attack'.* is unknown; expected 'real', 'print'"):
        load(write(tmp_path, rows), labelled=False, classes=("real", "print"), training=False)


@pytest.mark.soak
def test_many_rows_are_read_in_seconds(tmp_path: Path) -> None:
    count = 200_000
    (tmp_path / "images").mkdir()
    for i in range(count):
        (tmp_path / "images" / f"{i}.png").touch()
    rows = [[f"images/{i}.png", "ab"[i % 2], ("train", "val", "test")[i % 3], ""] for i in range(count)]
    path = write(tmp_path, rows)
    start = time.monotonic()
    manifest = load(path)
    assert time.monotonic() - start < 20
    assert np.bincount(manifest.label).tolist() == [count // 2] * 2

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookhere.data.manifest import DataOptions, Manifest, SaliencyOptions, read_manifest
from lookhere.errors import DataError

HEADER = ["image", "label", "split", "saliency"]
Rows = list[list[str]]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """A sound manifest of 12 rows (2 to 13 in an editor) whose files exist."""
    table = []
    for i, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2 + ["test_print"] * 2):
        name = f"{'attack' if i % 2 else 'real'}{i}.png"
        Image.new("L", (20, 20), i).save(tmp_path / name)
        Image.new("L", (20, 20), i).save(tmp_path / f"map{i}.png")
        table.append([name, "attack" if i % 2 else "real", split, f"map{i}.png"])
    return table


def write(folder: Path, rows: Rows, header: list[str] | None = HEADER, name: str = "manifest.csv") -> Path:
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return folder / name


def load(path: Path, saliency: dict[str, object] | None = None, **data: object) -> Manifest:
    asked = {name: data.pop(name) for name in ("labelled", "classes", "training", "need_val") if name in data}
    return read_manifest(DataOptions(manifest=path, **data), SaliencyOptions(**(saliency or {})), **asked)


def contents(manifest: Manifest) -> tuple[object, ...]:
    return (
        manifest.classes,
        manifest.positive,
        [str(manifest.image_path(i)) for i in range(len(manifest))],
        manifest.label.tolist(),
        manifest.split.tolist(),
    )


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


def test_forms_are_equal(tmp_path: Path, rows: Rows) -> None:
    expected = contents(load(write(tmp_path, rows)))
    bare = [[row[2].upper().replace("VAL", "Validation"), row[1], "//" + row[0]] for row in rows]
    variants = [
        write(tmp_path, bare, None, "bare.csv"),
        write(tmp_path, bare, ["split", "label", "path"], "headed.csv"),
    ]
    text = (tmp_path / "manifest.csv").read_text()
    for name, encoded in {
        "bom.csv": text.encode("utf-8-sig"),
        "crlf.csv": text.replace("\n", "\r\n").encode(),
        "no_last_newline.csv": text.rstrip().encode(),
        "blank_lines.csv": text.replace("\n", "\n\n").encode(),
        "quoted.csv": text.replace("real0.png", '"real0.png"').encode(),
        "dots_and_backslashes.csv": text.replace("real0.png", ".\\x\\..\\real0.png").encode(),
    }.items():
        (tmp_path / name).write_bytes(encoded)
        variants.append(tmp_path / name)
    for path in variants:
        assert contents(load(path)) == expected, path.name


def test_cells_are_kept_verbatim(tmp_path: Path, rows: Rows) -> None:
    for row, label in zip(rows, ["NA", "001"] * 6, strict=True):
        row[1] = label
    (tmp_path / rows[0][0]).rename(tmp_path / 'é, "1"\n.png')
    rows[0][0] = 'é, "1"\n.png'
    rows[11][2] = "tset"
    path = write(tmp_path, rows)
    with pytest.raises(
        DataError, match="row 14, column split: 'tset'"
    ):  # one more than its number: row 2 has two lines
        load(path)
    rows[11][2] = "Test"
    manifest = load(write(tmp_path, rows))
    assert manifest.classes == ("001", "NA")
    assert manifest.image[0] == 'é, "1"\n.png'


Change = Callable[[Rows], object]


def cell(row: int, column: int, value: str) -> Change:
    """A change of the cell in ``row``, counted as an editor does."""
    return lambda rows: rows[row - 2].__setitem__(column, value)


def every(column: int, old: str, new: str) -> Change:
    return lambda rows: [row.__setitem__(column, new) for row in rows if row[column] == old]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        pytest.param(cell(5, 0, "real9.png"), ["row 5, column image", "'real9.png' not found"], id="missing image"),
        pytest.param(cell(5, 0, "ATTACK3.png"), ["row 5", "did you mean 'attack3.png'?"], id="wrong case"),
        pytest.param(cell(5, 0, ""), ["row 5, column image", "empty"], id="empty image"),
        pytest.param(cell(5, 0, "folder"), ["row 5, column image", "'folder' is a folder"], id="folder as image"),
        pytest.param(cell(5, 0, "x" * 300 + ".png"), ["row 5, column image", "not found"], id="long name"),
        pytest.param(cell(5, 0, "../out.png"), ["row 5, column image", "'../out.png' leaves the root"], id="dots"),
        pytest.param(cell(5, 0, "/etc/hosts"), ["row 5, column image", "'/etc/hosts' leaves"], id="absolute"),
        pytest.param(cell(5, 0, "link.png"), ["row 5, column image", "'link.png' leaves the root"], id="link"),
        pytest.param(cell(5, 0, "linked/a.png"), ["row 5, column image", "leaves the root"], id="linked folder"),
        pytest.param(cell(5, 3, "map99.png"), ["row 5, column saliency", "'map99.png' not found"], id="missing map"),
        pytest.param(cell(5, 2, "tset"), ["row 5, column split", "'tset'", "did you mean 'test'?"], id="unknown split"),
        pytest.param(
            cell(5, 2, ""), ["row 5, column split", "'' is no split", "expected train, val"], id="blank split"
        ),
        pytest.param(every(2, "train", "test"), ["no train rows; found test (8 rows)", "val (2"], id="no train"),
        pytest.param(every(2, "val", "test"), ["no val rows", 'data.splits = {test = "val"}', '"last"'], id="no val"),
        pytest.param(every(1, "attack", "real"), ["column label", "one class in train, 'real'"], id="one class"),
        pytest.param(
            cell(5, 1, "Attack"), ["row 5, column label", "'Attack' (1 row) and 'attack' (5 rows)"], id="case"
        ),
        pytest.param(cell(8, 1, "atack"), ["row 8, column label", "'atack' (1", "mean 'attack'?"], id="not in train"),
        pytest.param(cell(5, 1, "atack"), ["row 5, column label", "only train row", "mean 'attack'?"], id="lone label"),
        pytest.param(cell(5, 1, ""), ["row 5, column label", "empty"], id="blank label"),
        pytest.param(
            cell(5, 0, "real2.png"), ["row 5, column label", "'attack' here", "'real' in row 4"], id="2 labels"
        ),
        pytest.param(cell(8, 0, "real0.png"), ["row 8, column split", "in val here", "in train in row 2"], id="leak"),
        pytest.param(
            lambda rows: rows[0].append("x"), ["row 2: 5 fields", "expected 4"], id="extra field in first row"
        ),
        pytest.param(lambda rows: rows[3].pop(), ["row 5: 3 fields", "expected 4"], id="ragged row"),
    ],
)
def test_one_problem(tmp_path: Path, rows: Rows, change: Change, parts: list[str]) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "out.png")
    root = tmp_path / "root"
    root.mkdir()
    for file in tmp_path.glob("[arm]*.png"):
        file.rename(root / file.name)
    (root / "folder").mkdir()
    (root / "link.png").symlink_to(tmp_path / "out.png")
    (root / "linked").symlink_to(tmp_path)
    load(write(root, rows))
    change(rows)
    path = write(root, rows)
    with pytest.raises(DataError) as caught:
        load(path)
    message = caught.value.problems[0]
    assert len(caught.value.problems) == 1
    assert all(part in message for part in [str(path), *parts]), message


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


def test_outside_and_renamed_splits_where_asked(tmp_path: Path, rows: Rows) -> None:
    below = tmp_path / "below"
    below.mkdir()
    for row in rows:
        row[0], row[3] = "../" + row[0], str(tmp_path / row[3])
        row[2] = row[2].replace("val", "Testing")
    path = write(below, rows)
    with pytest.raises(DataError):
        load(path)
    manifest = load(path, allow_outside=True, splits={"TESTING": "valid"})
    assert manifest.rows("val").tolist() == [6, 7]
    assert manifest.image_path(0).samefile(tmp_path / "real0.png")
    with pytest.raises(DataError, match="'val' to 'dev'"):
        load(path, splits={"val": "dev"}, allow_outside=True, need_val=False)


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
    (tmp_path / "b").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "b" / "attack1.png")
    Image.new("L", (20, 20)).save(folder / "attack3_blended.png")
    twice = [[row[2], row[1], row[0]] for row in rows] + [["train", "attack", "b/attack1.png"]]
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, twice, None), {"folder": folder, "suffix": "_blended"})
    assert "row 13, column image: 'b/attack1.png' and 'attack1.png' (row 2) share the map" in str(caught.value)
    assert "row 4, column image: 'attack3.png' has 2 maps" in str(caught.value)


def test_missing_maps_are_an_error_in_train_only(tmp_path: Path, rows: Rows) -> None:
    rows[9][3] = ""
    assert load(write(tmp_path, rows), {"missing": "error"}).saliency[9] == ""
    rows[1][3] = ""
    path = write(tmp_path, rows)
    assert load(path).saliency[1] == ""
    with pytest.raises(DataError, match=r"row 3, column saliency: no map for 'attack1.png'"):
        load(path, {"missing": "error"})


def test_warnings(tmp_path: Path, rows: Rows) -> None:
    rows.append(list(rows[0]))
    grouped = [[*row, f"person {i // 5}"] for i, row in enumerate(rows)]
    warnings = load(write(tmp_path, grouped, [*HEADER, "group"])).warnings
    assert any("1 row with the image of an earlier one (row 14 that of row 2)" in warning for warning in warnings)
    assert any("in both train and val: 1 group, such as 'person 1'" in warning for warning in warnings)


def test_two_test_splits_may_share_images(tmp_path: Path, rows: Rows) -> None:
    rows.append([rows[8][0], rows[8][1], "test_print", ""])
    assert len(load(write(tmp_path, rows))) == 13


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

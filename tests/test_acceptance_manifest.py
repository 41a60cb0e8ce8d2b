"""Manifests that are wrong. ``case_N`` is case N of the project's list of acceptance cases (1 to 15 here)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lookhere.cli import main
from lookhere.errors import DataError
from lookhere.evaluation.scores import Scores, write_scores
from manifest_files import HEADER, Change, Rows, cell, contents, every, load, make_rows, write

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return make_rows(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line: exit code, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def problems(path: Path, **data: object) -> list[str]:
    with pytest.raises(DataError) as caught:
        load(path, **data)
    return caught.value.problems


def only_problem(path: Path, *parts: str, **data: object) -> None:
    """Assert that a manifest has one problem, whose message has all parts."""
    (message,) = problems(path, **data)
    assert all(part in message for part in [str(path), *parts]), message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.csv", "manifest not found; expected a CSV file"),
        ("folder", "is a folder; expected a CSV file"),
        ("circle.csv", "the manifest cannot be read (Too many levels of symbolic links)"),
        ("file/manifest.csv", "the manifest cannot be read (Not a directory)"),
        ("locked.csv", "the manifest cannot be read (Permission denied)"),
    ],
)
@pytest.mark.parametrize("verb", [["check"], ["train", "--weights", "random", "--data"]], ids=["check", "train"])
def test_case_01_a_manifest_that_cannot_be_opened(
    run: Run, tmp_path: Path, verb: list[str], name: str, reason: str
) -> None:
    if name == "locked.csv" and os.geteuid() == 0:
        pytest.skip("nothing is locked for root")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle.csv").symlink_to("circle.csv")
    (tmp_path / "file").touch()
    (tmp_path / "locked.csv").touch(mode=0)
    code, out, err = run(*verb, tmp_path / name)
    assert (code, out) == (3, "")
    assert f"{tmp_path / name}: {reason}" in err


@pytest.mark.parametrize(
    "text", ["", "\n\r\n", "\ufeff", "image,label,split\n", "image,label,split\n\n\n", "split,label,path\n"]
)
def test_case_02_no_rows(run: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    only_problem(path, "no rows", "expected")
    code, _, err = run("check", path)
    assert code == 3
    assert "no rows" in err


def test_case_03_forms_and_encodings(tmp_path: Path, rows: Rows) -> None:
    expected = contents(load(write(tmp_path, rows)))
    bare = [[row[2].upper().replace("VAL", "Validation"), row[1], "//" + row[0]] for row in rows]
    text = (tmp_path / "manifest.csv").read_text()
    listed = write(tmp_path, bare, None, "bare.csv").read_text()
    headed = write(tmp_path, bare, ["split", "label", "path"], "headed.csv").read_text()
    for form in (text, listed, headed):
        for name, encoded in {
            "plain": form.encode(),
            "byte order mark": form.encode("utf-8-sig"),
            "CRLF": form.replace("\n", "\r\n").encode(),
            "both": form.replace("\n", "\r\n").encode("utf-8-sig"),
            "no last newline": form.rstrip().encode(),
            "blank lines": form.replace("\n", "\n\n").encode(),
            "quoted": form.replace("real0.png", '"real0.png"').encode() if form is text else form.encode(),
        }.items():
            (tmp_path / "variant.csv").write_bytes(encoded)
            assert contents(load(tmp_path / "variant.csv")) == expected, (name, form[:20])
        for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
            (tmp_path / "variant.csv").write_bytes(form.encode(encoding))
            only_problem(tmp_path / "variant.csv", "the encoding looks like UTF-16", "expected UTF-8")


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("\t", "'\\t'"), ("|", "'|'")])
@pytest.mark.parametrize("header", [True, False])
def test_case_04_another_delimiter(tmp_path: Path, rows: Rows, mark: str, shown: str, header: bool) -> None:
    path = write(tmp_path, rows) if header else write(tmp_path, [[row[2], row[1], row[0]] for row in rows], None)
    text = path.read_text().replace(",", mark)
    path.write_text(text)
    columns = "image,label,split[,saliency,type,group,weight]"
    only_problem(path, "row 1", f"separated by {shown}; expected commas", columns, repr(text.splitlines()[0]))


def test_case_05_columns_missing_or_twice(tmp_path: Path, rows: Rows) -> None:
    for header, parts in (
        (["image", "label", "part", "saliency"], ["no column 'split'", "'image,label,part,saliency'"]),
        (["image", "lable", "split", "saliency"], ["no column 'label'", "'image,lable,split,saliency'"]),
        (["image", "label", "split", "split"], ["column 'split' occurs 2 times", "'image,label,split,split'"]),
    ):
        path = write(tmp_path, rows, header)
        message = problems(path)[0]
        assert all(part in message for part in [f"{path}, row 1", *parts]), message
    for wrong, meant in (("lable", "label"), ("Label ", "label"), ("lables", "label")):
        hints = problems(write(tmp_path, rows, ["image", wrong, "split", "saliency"]))
        assert f"unknown column '{wrong}'" in hints[1]
        assert f"did you mean '{meant}'?" in hints[1]
    only_problem(write(tmp_path, rows, [*HEADER[:3], "salency"]), "'salency'", "did you mean 'saliency'?")


@pytest.mark.parametrize("row", [2, 5, 13])
@pytest.mark.parametrize("form", ["rich", "list"])
def test_case_06_fields_too_many_or_too_few(tmp_path: Path, rows: Rows, row: int, form: str) -> None:
    """In the first row too, where pandas would take the first column for an index."""
    header = HEADER if form == "rich" else ["split", "label", "path"]
    table = rows if form == "rich" else [[row[2], row[1], row[0]] for row in rows]
    expected = f"expected {len(header)}: {'split,label,image' if form == 'list' else ','.join(header)}"
    table[row - 2].append("x")
    only_problem(write(tmp_path, table, header), f"row {row}: {len(header) + 1} fields", expected)
    del table[row - 2][-2:]
    only_problem(write(tmp_path, table, header), f"row {row}: {len(header) - 1} fields", expected)
    if form == "list":
        only_problem(write(tmp_path, table, None), f"row {row - 1}: 2 fields", expected)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (cell(5, 2, "tset"), ["row 5, column split", "'tset'", "expected train, val or", "did you mean 'test'?"]),
        (cell(5, 2, "dev"), ["row 5, column split", "'dev'", "expected train, val or a name that starts with test"]),
        (cell(5, 2, ""), ["row 5, column split", "'' is no split", "expected train, val"]),
        (every(2, "train", "test"), ["no train rows; found test (8 rows)", "val (2 rows)"]),
        (every(2, "val", "test"), ["no val rows", 'data.splits = {test = "val"}', '"last"']),
    ],
)
def test_case_07_splits_unknown_or_empty(tmp_path: Path, rows: Rows, change: Change, parts: list[str]) -> None:
    change(rows)
    only_problem(write(tmp_path, rows), *parts)


def test_case_08_slips_in_labels(run: Run, tmp_path: Path, rows: Rows) -> None:
    lone = "'atack' is the only train row of its class; expected two or more; did you mean 'attack'?"
    found = "3 classes found: atack (1 row), attack (2 rows), real (3 rows)"
    for change, parts in (
        (cell(5, 1, "atack"), ["row 5, column label", lone, found]),
        (cell(9, 1, "atack"), ["row 9, column label", "'atack' (1 row) does not occur in train", "mean 'attack'?"]),
        (cell(5, 1, "Attack"), ["row 5, column label", "'Attack' (1 row) and 'attack' (5 rows)", "one spelling"]),
        (cell(5, 1, "attack "), ["row 5, column label", "'attack' (5 rows) and 'attack ' (1 row) differ"]),
    ):
        slipped = [row.copy() for row in rows]
        change(slipped)
        only_problem(write(tmp_path, slipped), *parts)
    # Twice in train it may be meant, so it is listed.
    for row, label in ((3, "atack"), (5, "atack"), (6, "attack")):
        cell(row, 1, label)(rows)
    path = write(tmp_path, rows)
    code, out, _ = run("check", path, "--set", "data.size=16")
    assert code == 0
    assert "3 classes found: atack (2 rows), real (5 rows), attack (5 rows)" in out
    # With the classes of a model, each row is told.
    cell(13, 1, "ATTACK")(rows)
    told = problems(write(tmp_path, rows), classes=("real", "attack"), training=False)
    assert [problem.partition(", ")[2] for problem in told] == [
        "row 3, column label: 'atack' is unknown; expected 'real', 'attack'; did you mean 'attack'?",
        "row 5, column label: 'atack' is unknown; expected 'real', 'attack'; did you mean 'attack'?",
        "row 13, column label: 'ATTACK' is unknown; expected 'real', 'attack'; did you mean 'attack'?",
    ]


@pytest.mark.parametrize("other", ["None", "null", "001", "1e5", "nan", "TRUE", "健康", "naïve, “gut”", " x "])
def test_case_09_labels_are_kept_verbatim(run: Run, tmp_path: Path, rows: Rows, other: str) -> None:
    for row in rows:
        row[1] = "NA" if row[1] == "real" else other
    path = write(tmp_path, rows)
    manifest = load(path)
    assert [manifest.classes[label] for label in manifest.label] == ["NA", other] * 6
    code, out, _ = run("check", path, "--json", "--set", "data.size=16")
    assert code == 0
    assert set(json.loads(out)["classes"]) == {"NA", other}


def test_case_10_one_class_in_train(tmp_path: Path, rows: Rows) -> None:
    every(1, "attack", "real")(rows)
    only_problem(write(tmp_path, rows), "column label", "one class in train, 'real'; expected two or more")


@pytest.mark.parametrize(
    ("present", "reason", "given", "lacking"),
    [
        ("attack", "no negatives", "apcer_at_val", "bpcer_at_val"),
        ("real", "no positives", "bpcer_at_val", "apcer_at_val"),
    ],
)
def test_case_10_one_class_in_test(
    run: Run, tmp_path: Path, rows: Rows, present: str, reason: str, given: str, lacking: str
) -> None:
    rows[8:] = [row for row in rows[8:] if row[1] == present]
    path = write(tmp_path, rows)
    assert run("check", path, "--set", "data.size=16")[0] == 0
    manifest = load(path)
    n = len(manifest)
    columns = {name: np.array([""] * n, object) for name in ("type", "type_seen", "group")}
    logits = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32).astype(np.float64)
    id, split = np.array(manifest.image, object), manifest.split.astype(object)
    write_scores(tmp_path / "scores.csv", Scores(manifest.classes, id, split, manifest.label, logits=logits, **columns))
    code, out, _ = run("evaluate", tmp_path / "scores.csv", "--json", "--bootstrap", 10)
    assert code == 0
    metrics = next(subset for subset in json.loads(out)["subsets"] if subset["split"] == "test")["metrics"]
    for name in ("auroc", lacking):
        assert metrics[name]["value"] is None
        assert reason in metrics[name]["why"]
    assert 0 <= metrics[given]["value"] <= 1
    code, out, _ = run("evaluate", tmp_path / "scores.csv", "--bootstrap", 10)
    assert code == 0
    assert f"– : {reason}" in out


def test_case_11_an_image_in_two_splits(run: Run, tmp_path: Path, rows: Rows) -> None:
    leaked = [row.copy() for row in rows]
    cell(10, 0, "./real0.png")(leaked)
    where = "row 10, column split: 'real0.png' is in test here and in train in row 2; expected one split"
    only_problem(write(tmp_path, leaked), where)
    shutil.copy(tmp_path / "real0.png", tmp_path / "other name.png")
    cell(10, 0, "other name.png")(leaked)
    code, _, err = run("check", write(tmp_path, leaked), "--set", "data.size=16")
    assert code == 3
    assert "row 10, column image: 'other name.png' (test) has the same pixels as 'real0.png' (train, row 2)" in err
    # Two lists of attacks may share their bona fide images.
    assert len(load(write(tmp_path, [*rows, [rows[8][0], rows[8][1], "test_print", ""]]))) == 13


def test_case_11_a_person_in_two_splits(run: Run, tmp_path: Path, rows: Rows) -> None:
    grouped = [[*row, f"person {i // 5}"] for i, row in enumerate(rows)]
    path = write(tmp_path, grouped, [*HEADER, "group"])
    warning = "column group: in both train and val: 1 group, such as 'person 1'"
    code, out, _ = run("check", path, "--set", "data.size=16")
    assert code == 0
    assert warning in out
    code, _, err = run("check", path, "--set", "data.size=16", "--strict")
    assert code == 3
    assert warning in err


def test_case_12_repeated_rows(run: Run, tmp_path: Path, rows: Rows) -> None:
    repeated = [*rows, rows[0], rows[3]]
    code, out, _ = run("check", write(tmp_path, repeated), "--set", "data.size=16")
    assert code == 0
    assert "2 rows with the image of an earlier one (row 14 that of row 2)" in out
    cell(5, 0, "real2.png")(rows)
    only_problem(write(tmp_path, rows), "row 5, column label: 'real2.png' is 'attack' here and 'real' in row 4")


@pytest.mark.parametrize("column", ["image", "saliency"])
@pytest.mark.parametrize(
    "path",
    ["../out.png", "a/../../out.png", "..\\out.png", "/etc/passwd", "{up}/out.png", "link.png", "linked/out.png"],
)
def test_case_13_paths_that_leave_the_root(run: Run, tmp_path: Path, column: str, path: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    rows = make_rows(root)
    shutil.copy(root / "attack3.png", tmp_path / "out.png")
    (root / "attack3.png").unlink()
    (root / "link.png").symlink_to(tmp_path / "out.png")
    (root / "linked").symlink_to(tmp_path)
    path = path.replace("{up}", str(tmp_path))
    cell(5, HEADER.index(column), path)(rows)
    if column == "saliency":
        cell(5, 0, "../out.png")(rows)
    manifest = write(root, rows)
    code, _, err = run("check", manifest, "--set", "data.size=16")
    assert code == 3
    assert f"row 5, column {column}: '" in err
    assert f"leaves the root {root}; expected a path below it (or set data.root, data.allow_outside)" in err
    assert "not a readable image" not in err  # what is refused is not opened
    if path != "/etc/passwd":
        assert run("check", manifest, "--set", "data.size=16", "--set", "data.allow_outside=true")[0] == 0


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("faces/attack 3.png", "faces\\attack 3.png"),
        ("faces/attack3.png", ".\\faces\\..\\faces\\attack3.png"),
        ("faces/attack3.png", "/faces/attack3.png"),
        ("faces/attack3.png", "//faces/attack3.png"),
        (" two  spaces .png", " two  spaces .png"),
        ('眼é ß, "1"\n.png', '眼é ß, "1"\n.png'),
        ("x" * 200 + ".png", "x" * 200 + ".png"),
    ],
)
def test_case_14_unusual_paths_work(tmp_path: Path, rows: Rows, name: str, written: str) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "attack3.png").rename(tmp_path / name)
    cell(5, 0, written)(rows)
    listed = load(write(tmp_path, [[row[2], row[1], row[0]] for row in rows], None))
    assert listed.image[3] == written
    assert listed.image_path(3).samefile(tmp_path / name)
    if written.startswith("/"):
        only_problem(write(tmp_path, rows), "row 5, column image", f"'{written}' leaves the root")
    else:
        assert load(write(tmp_path, rows)).image_path(3).samefile(tmp_path / name)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("Attack3.PNG", "; did you mean 'attack3.png'?"),
        ("FACES/one.png", "; did you mean 'faces/one.png'?"),
        ("x" * 300 + ".png", ""),
        ("x" * 300 + "/one.png", ""),
    ],
)
def test_case_14_names_that_no_file_has(run: Run, tmp_path: Path, rows: Rows, written: str, hint: str) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "one.png").touch()
    for column in (0, 3):
        broken = [row.copy() for row in rows]
        cell(5, column, written)(broken)
        path = write(tmp_path, broken)
        only_problem(path, f"row 5, column {HEADER[column]}: '{written}' not found in {tmp_path}", hint)
        assert run("check", path)[0] == 3


def test_case_15_all_rows_without_an_image_are_listed(run: Run, tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "attack1.png").unlink()
    (tmp_path / "attack3.png").unlink()
    (tmp_path / "attack3.png").mkdir()
    (tmp_path / "attack5.png").write_bytes(b"")
    (tmp_path / "real6.png").write_text("<!doctype html><title>404</title>")
    (tmp_path / "map8.png").write_bytes(b"")
    (tmp_path / "map9.png").unlink()
    (tmp_path / "map3.png").write_text("<html>")  # of an image that cannot be read either
    cell(12, 0, "")(rows)
    cell(13, 2, "tset")(rows)
    path = write(tmp_path, rows)
    code, out, err = run("check", path, "--set", "data.size=16", "--json")
    assert code == 3
    told = [problem.removeprefix(f"{path}, ") for problem in json.loads(out)["errors"]]
    assert all(problem in err for problem in told)
    readable = "expected PNG, JPEG, TIFF, BMP"
    expected = [
        f"row 3, column image: 'attack1.png' not found in {tmp_path}",
        "row 5, column image: 'attack3.png' is a folder; expected an image file",
        f"row 5, column saliency: 'map3.png': not a readable image; {readable}",
        f"row 7, column image: 'attack5.png': empty (0 bytes); {readable}",
        f"row 8, column image: 'real6.png': not a readable image; {readable}",
        f"row 10, column saliency: 'map8.png': empty (0 bytes); {readable}",
        f"row 11, column saliency: 'map9.png' not found in {tmp_path}",
        "row 12, column image: empty; expected the path of an image",
        "row 13, column split: 'tset' is no split; expected train, val or a name that starts with test; "
        "did you mean 'test'?",
    ]
    assert sorted(told) == sorted(expected)

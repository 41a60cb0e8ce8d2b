from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.special import logit, softmax

from lookhere.errors import DataError, UsageError
from lookhere.evaluation.scores import Scores, read_scores, write_scores


def text(values) -> np.ndarray:
    return np.array(list(values), dtype=object)


def make_scores(n: int, classes: tuple[str, ...] = ("bona fide", "attack")) -> Scores:
    rng = np.random.default_rng(0)
    label = np.arange(n) % len(classes)
    names = text(f"{row}.png" for row in range(n))
    columns = {name: text([name] * n) for name in ("type", "group")}
    logits = rng.normal(size=(n, len(classes))).astype(np.float32).astype(np.float64)
    return Scores(classes, names, text(["test"] * n), label, type_seen=text(["no"] * n), logits=logits, **columns)


def assert_equal(a: Scores, b: Scores) -> None:
    assert a.classes == b.classes
    for field in fields(Scores)[1:]:
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def test_margin_is_the_logit_of_the_softmax_probability_and_never_saturates():
    scores = make_scores(30, classes=("bona fide", "attack", "unsure"))
    for index, name in enumerate(scores.classes):
        np.testing.assert_allclose(scores.margin(name), logit(softmax(scores.logits, axis=1)[:, index]), atol=1e-9)
    two = make_scores(n=2)
    two = replace(two, logits=np.array([[0.0, 1e4], [-1.0, 1e4]]))
    assert two.margin("attack").tolist() == [1e4, 1e4 + 1]
    with pytest.raises(UsageError, match="did you mean 'attack'"):
        two.margin("atack")


def test_file_round_trip_is_exact_for_awkward_text_and_single_precision(tmp_path):
    names = ["NA", "a,b", 'say "x"', "zwei\nZeilen", "cr\rlf\r\n", "眼/é.png", "=cmd|' /C calc'!A0", " padded "]
    n = len(names)
    bits = np.random.default_rng(0).integers(0, 2**32, size=4 * n, dtype=np.uint32).view(np.float32)
    scores = Scores(
        classes=("NA", "001"),
        id=text(names),
        split=text(["test"] * n),
        label=np.arange(n) % 3 - 1,
        type=text(reversed(names)),
        type_seen=text(["yes", "no", "", ""] * 2),
        group=text(names),
        logits=bits[np.isfinite(bits)][: 2 * n].astype(np.float64).reshape(n, 2),
    )
    write_scores(tmp_path / "scores.csv", scores)
    assert_equal(read_scores(tmp_path / "scores.csv"), scores)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_one_class_files_are_joined_by_the_names_of_their_classes(tmp_path):
    scores = make_scores(30)
    swapped = replace(scores, classes=scores.classes[::-1], label=1 - scores.label, logits=scores.logits[:, ::-1])
    write_scores(tmp_path / "live.csv", scores.select(scores.label == 0))
    write_scores(tmp_path / "spoof.csv", swapped.select(scores.label == 1))
    joined = read_scores(tmp_path / "live.csv", tmp_path / "spoof.csv", positive="attack")
    assert_equal(joined, scores.select(np.argsort(scores.label, kind="stable")))
    with pytest.raises(DataError, match=r"live\.csv: '\d+\.png' of split \w+ is in .*live\.csv too"):
        read_scores(tmp_path / "live.csv", tmp_path / "live.csv")
    write_scores(tmp_path / "other.csv", replace(scores, classes=("real", "fake")))
    with pytest.raises(DataError, match="expected \\['bona fide', 'attack'\\]"):
        read_scores(tmp_path / "live.csv", tmp_path / "other.csv")
    with pytest.raises(UsageError, match="did you mean 'attack'"):
        read_scores(tmp_path / "live.csv", positive="attak")


HEADER = "id,split,label,type,type_seen,group,logit_live,logit_spoof"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["empty, expected a header"]),
        (HEADER, ["no rows"]),
        ("id,split,label,kind,type_seen,group,logit_live\n", ["no column 'type'", "unknown column 'kind'", "['live']"]),
        (HEADER.replace(",", ";") + "\n", ["no column 'id'", "id;split;label"]),
        (HEADER + ",id\n", ["column 'id' occurs twice"]),
        (HEADER + "\na,test,live,,,,1\n", ["row 2: 7 fields, expected 8"]),
        (HEADER + "\na,test,live,,,,1,2\n\"b\nc\",test,live,,,,nan,x\nd,test,live,,,,1e39,inf\n",
         ["row 3, column logit_live: 'nan'", "row 3, column logit_spoof: 'x'", "row 5, column logit_live: '1e39'"]),
        (HEADER + "\na,tset,Live,,maybe,,1,2\n",
         ["row 2, column split: 'tset'", "column label: 'Live', expected blank or one of live, spoof", "'maybe'"]),
        (HEADER + '\n"a"b,test,live,,,,1,2\n', ["row 2: not a CSV record"]),
    ],
)  # fmt: skip
def test_every_problem_of_a_damaged_file_is_named(tmp_path, content, parts):
    path = tmp_path / "scores.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_scores(path)
    assert all(str(path) in problem for problem in caught.value.problems)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    (tmp_path / "utf16.csv").write_bytes(HEADER.encode("utf-16"))
    with pytest.raises(DataError) as caught:
        read_scores(tmp_path / "none.csv", tmp_path, tmp_path / "utf16.csv")
    assert [str(problem).partition(": ")[2].partition(":")[0] for problem in caught.value.problems] == [
        "cannot be read",
        "cannot be read",
        "not UTF-8 text",
    ]
    with pytest.raises(UsageError, match="cannot be written"):
        write_scores(tmp_path / "utf16.csv" / "scores.csv", make_scores(3))


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path, scores = tmp_path / "scores.csv", make_scores(30)
    write_scores(path, scores)
    broken = replace(scores, type=text([*["x"] * 29, "\ud800"]))
    with pytest.raises(UnicodeEncodeError):
        write_scores(path, broken)
    assert_equal(read_scores(path), scores)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e39])
def test_logits_that_are_not_finite_are_refused_with_the_image(value):
    scores = make_scores(5)
    logits = scores.logits.copy()
    logits[3, 1] = value
    with pytest.raises(DataError, match=r"'3\.png', column logit_attack"):
        replace(scores, logits=logits)

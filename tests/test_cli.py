"""The command line: the verbs, and one clear line with its exit code for everything that can be wrong."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookhere.bench import demo
from lookhere.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")

SMALL = ["--backbone", "test_resnet", "--weights", "random", "--device", "cpu", "--set", "data.size=48"]
SHORT = ["--set", "training.epochs=1", "--set", "training.batch_size=8"]


@pytest.fixture(scope="module")
def run(iris: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "runs" / "sage"
    assert main(["train", "--data", str(iris), "--method", "sage", *SMALL, *SHORT, "--out", str(out)]) == 0
    return out


def test_predict_evaluate_and_report_use_a_run(run: Path, iris: Path, tmp_path: Path, capsys) -> None:
    scores, report = tmp_path / "scores.csv", tmp_path / "report.html"
    assert main(["predict", str(run), "--data", str(iris), "--out", str(scores), "--device", "cpu"]) == 0
    command = capsys.readouterr().out.rpartition("next: lookhere ")[2].split()
    assert main([*command, "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)
    stored = json.loads((run / "result.json").read_text())["evaluation"]
    assert evaluation["threshold"] == stored["threshold"]
    by_name = {(s["split"], s["name"]): s["metrics"]["auroc"]["value"] for s in evaluation["subsets"]}
    for subset in stored["subsets"]:
        key = (subset["split"], subset["name"])
        assert by_name[key] == pytest.approx(subset["metrics"]["auroc"]["value"], abs=1e-9)
    assert main(["evaluate", str(scores)]) == 0
    assert "AUROC" in capsys.readouterr().out
    assert main(["report", str(run.parent), "--out", str(report)]) == 0
    assert "sage" in report.read_text()


def test_prediction_needs_no_labels(run: Path, iris: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "new.csv"
    images = [row["image"] for row in csv.DictReader(iris.open())][:5]
    manifest.write_text("image\n" + "".join(f"{image}\n" for image in images))
    arguments = ["--set", f"data.root={iris.parent}", "--out", str(tmp_path / "s.csv"), "--device", "cpu"]
    assert main(["predict", str(run), "--data", str(manifest), *arguments]) == 0
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    known = {row["id"]: row for row in csv.DictReader((run / "predictions.csv").open())}
    assert [row["id"] for row in rows] == images
    assert {row["label"] for row in rows} == {""}
    for row in rows:
        if row["id"] in known:
            assert float(row["logit_attack"]) == pytest.approx(float(known[row["id"]]["logit_attack"]), abs=1e-5)


def test_check_and_methods_and_help_show_what_there_is(iris: Path, capsys) -> None:
    assert main(["check", str(iris)]) == 0
    assert "textured contact lens" in capsys.readouterr().out
    assert main(["methods"]) == 0
    assert {"sage", "cross-entropy"} <= set(capsys.readouterr().out.split())
    assert main(["methods", "sage"]) == 0
    assert re.search(r"method\.alpha +number ≥ 0 and ≤ 1 +0\.5 +Share", capsys.readouterr().out)
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--resume" in shown
    assert "training.learning_rate" in shown


def write_set(folder: Path) -> Path:
    """A small valid set of random pictures with maps, to be broken in one way at a time."""
    rng = np.random.default_rng(0)
    rows = ["image,label,split,saliency"]
    for i in range(12):
        for kind in ("image", "map"):
            Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(folder / f"{kind}{i}.png")
        rows.append(
            f"image{i}.png,{'attack' if i % 2 else 'live'},{('train', 'train', 'val', 'test')[i // 3]},map{i}.png"
        )
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    return folder / "m.csv"


def edit(old: str, new: str):
    return lambda folder: (folder / "m.csv").write_text((folder / "m.csv").read_text().replace(old, new))


def truncate(folder: Path) -> None:
    (folder / "image3.png").write_bytes((folder / "image3.png").read_bytes()[:400])


def widen_map(folder: Path) -> None:
    Image.new("L", (64, 32), 9).save(folder / "map3.png")


@pytest.mark.parametrize(
    ("damage", "options", "code", "expected"),
    [
        (lambda f: (f / "m.csv").unlink(), [], 3, ["m.csv", "no such file|not found|does not exist"]),
        (lambda f: (f / "m.csv").write_text(""), [], 3, ["m.csv", "empty|no rows"]),
        (edit(",", ";"), [], 3, ["m.csv", "image;label;split"]),
        (edit("image,label", "image,lable"), [], 3, ["lable", "did you mean|label"]),
        (edit("image,label,split", "image,label,label,split"), [], 3, ["label", "occurs 2 times"]),
        (edit("image4.png,live", "image4.png,live,x"), [], 3, ["row 6", "fields|columns"]),
        (edit("live,val", "live,vall"), [], 3, ["row ", "split", "vall", "did you mean 'val'"]),
        (edit(",val,", ",test,"), [], 3, ["val", "training.select"]),
        (edit("live,train", "attack,train"), [], 3, ["train", "one class|at least two|two classes"]),
        (edit("image3.png", "image33.png"), [], 3, ["row 5", "image33.png", "not found"]),
        (truncate, [], 3, ["image3.png", "truncated|cut"]),
        (lambda f: (f / "image3.png").write_text("<html>"), [], 3, ["image3.png", "not a"]),
        (edit("map3.png", ""), ["--set", "saliency.missing=error"], 3, ["row 5", "saliency", "no map"]),
        (widen_map, [], 3, ["map3.png", "64", "32", "aspect|proportion"]),
        (edit("image3.png", "../image3.png"), [], 3, ["row 5", "../image3.png", "outside|leaves"]),
        (None, ["--set", "training.epoch=3"], 2, ["training.epoch", "did you mean 'training.epochs'"]),
        (None, ["--set", "method.alpha=2"], 2, ["method.alpha", "≤ 1", "got 2"]),
        (None, ["--method", "sagee"], 2, ["sagee", "did you mean 'sage'"]),
        (None, ["--backbone", "resnet8"], 2, ["resnet8", "did you mean"]),
        (None, ["--weights", "nowhere.safetensors"], 2, ["nowhere.safetensors"]),
        (None, ["--device", "cuda:77"], 2, ["cuda:77", "there is:"]),
        (None, ["--sed", "1"], 2, ["--sed", "--seed"]),
        (None, ["--config", "none.toml"], 2, ["none.toml"]),
    ],
)
def test_bad_input_is_told_in_a_line_before_any_training(damage, options, code, expected, tmp_path, capsys) -> None:
    manifest = write_set(tmp_path)
    if damage:
        damage(tmp_path)
    small = [] if {"--backbone", "--weights", "--device"} & set(options) else SMALL
    out = tmp_path / "out"
    assert main(["train", "--data", str(manifest), *small, *SHORT, *options, "--out", str(out)]) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("lookhere: error: ")
    for part in expected:
        assert re.search(part.replace("[", r"\["), error), (part, error)
    assert not (out / "metrics.jsonl").exists()


def test_constant_maps_are_counted_and_train_without_nan(tmp_path: Path, capsys) -> None:
    manifest = write_set(tmp_path)
    Image.new("L", (32, 32), 0).save(tmp_path / "map0.png")
    Image.new("L", (32, 32), 200).save(tmp_path / "map1.png")
    assert main(["check", str(manifest)]) == 0
    assert "2 constant maps" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["train", "--data", str(manifest), *SMALL, *SHORT, "--out", str(out)]) == 0
    line = json.loads((out / "metrics.jsonl").read_text())
    assert all(np.isfinite(value) for value in line["train"].values())


def test_predictions_and_runs_that_are_not_there_are_told(tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(tmp_path / "none.csv")]) == 3
    assert main(["predict", str(tmp_path), "--data", "m.csv"]) == 2
    assert main(["predict", str(tmp_path)]) == 2
    assert main(["methods", "sag"]) == 2
    assert "did you mean 'sage'" in capsys.readouterr().err


def test_the_demonstration_compares_and_continues(tmp_path: Path, monkeypatch, capsys) -> None:
    scale = demo.Scale(size=96, train=16, val=8, test=16, backbone="test_resnet", epochs=1)
    monkeypatch.setattr(demo, "QUICK", scale)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seeds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "cross-entropy" in shown
    assert "synthetic" in shown
    report = tmp_path / "demo" / "report.html"
    assert report.is_file()
    assert len(list((tmp_path / "demo" / "runs").glob("*/result.json"))) == 4
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").glob("runs/*/result.json")}
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seeds", "2"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}

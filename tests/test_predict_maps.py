"""``lookhere predict-maps``: a trained network draws the maps that a manifest lacks."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lookhere.bench import predict_maps as module
from lookhere.bench.finished import FinishedRun
from lookhere.bench.predict_maps import predict_maps
from lookhere.bench.run import train
from lookhere.cli import main
from lookhere.data.decode import decode_image
from lookhere.errors import DataError, UsageError
from lookhere.training.config import load_config

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel 7")
TINY = ["--backbone", "test_resnet", "--weights", "random", "--device", "cpu"]
TINY += ["--set", "data.size=32", "--set", "training.epochs=1", "--set", "training.batch_size=8"]


@pytest.fixture(scope="module")
def mentor(iris: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mentor"
    command = ["train", "--data", str(iris), "--method", "mentor", "--set", "method.map_epochs=2", *TINY]
    assert main([*command, "--out", str(out)]) == 0
    return out


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def grey_run(out: Path, **attributes: Any) -> FinishedRun:
    """A run whose network draws the brightness of the image it is given, in [0, 1]."""
    run = FinishedRun.load(out, "cpu", predicts="map")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (run.method.backbone.mean, run.method.backbone.std))
    run.method.predict_map = lambda image: (image * std + mean).mean(1, keepdim=True)
    return run


def test_half_of_the_maps_then_all_of_them_by_the_command_line(
    mentor: Path, iris: Path, tmp_path: Path, capsys: Any
) -> None:
    maps = tmp_path / "maps"
    assert main(["predict-maps", str(mentor), "--data", str(iris), "--out", str(maps), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "predicted maps of 12 images; 36 kept their own" in printed
    next_command = printed.splitlines()[-1].removeprefix("next: lookhere ").split()
    assert next_command == f"train --method sage --data {maps / 'manifest.csv'} --set data.size=32".split()
    before, after = rows_of(iris), rows_of(maps / "manifest.csv")
    for old, new in zip(before, after, strict=True):
        assert {k: v for k, v in new.items() if k not in ("saliency", "weight")} == {
            k: old[k] for k in ("image", "label", "split", "type", "group")
        }
        assert new["saliency"] == new["image"].replace("images/", "maps/")
        assert (maps / new["image"]).read_bytes() == (iris.parent / old["image"]).read_bytes()
        if old["saliency"]:
            assert (maps / new["saliency"]).read_bytes() == (iris.parent / old["saliency"]).read_bytes()
        with Image.open(maps / new["saliency"]) as image:
            assert (image.mode, image.size) == ("L", (96, 96))
    told = json.loads((maps / "provenance.json").read_text())
    result = json.loads((mentor / "result.json").read_text())
    assert told["run"]["identity"] == result["identity"]
    assert told["run"]["method"] == "mentor"
    assert told["weights"]["sha256"] == result["files"]["weights-map.safetensors"]
    assert told["predicted"] == sorted(row["image"] for row in before if not row["saliency"])

    command = ["train", "--data", str(maps / "manifest.csv"), "--method", "sage", *TINY]
    assert main([*command, "--out", str(tmp_path / "sage")]) == 0
    data = json.loads((tmp_path / "sage" / "result.json").read_text())["data"]
    assert result["data"]["maps"] == {"train": 12, "val": 8, "test": 16}
    assert data["maps"] == {"train": 24, "val": 8, "test": 16}
    assert data["synthetic"]

    everything = ["predict-maps", str(mentor), "--data", str(iris), "--out", str(tmp_path / "all"), "--all"]
    assert main(everything) == 0
    assert "predicted maps of 48 images; 0 kept their own" in capsys.readouterr().out
    unlike = [
        (tmp_path / "all" / new["saliency"]).read_bytes() != (iris.parent / old["saliency"]).read_bytes()
        for old, new in zip(before, rows_of(tmp_path / "all" / "manifest.csv"), strict=True)
        if old["saliency"]
    ]
    assert all(unlike)


def test_a_map_is_what_the_map_stage_draws(mentor: Path, iris: Path, tmp_path: Path) -> None:
    run = FinishedRun.load(mentor, "cpu", predicts="map")
    predict_maps(run, iris, tmp_path / "maps")
    lacking = next(row for row in rows_of(iris) if not row["saliency"])["image"]
    pixels = torch.tensor(decode_image(iris.parent / lacking, 32)).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (run.method.backbone.mean, run.method.backbone.std))
    image = ((pixels - mean) / std)[None]

    def difference(weights: str) -> float:
        method = FinishedRun.load(mentor, "cpu", predicts=weights).method
        with torch.no_grad():
            drawn = torch.nn.functional.interpolate(method.predict_map(image), (96, 96), mode="bilinear")
        written = np.asarray(Image.open(tmp_path / "maps" / lacking.replace("images/", "maps/")), np.float32)
        return float(np.abs(drawn[0, 0].numpy() * 255 - written).max())

    assert difference("map") < 0.51
    assert difference("label") > 0.6


def scene(width: int, height: int) -> np.ndarray:
    """A bright disc, in another place in each corner's direction, so that any turn or flip shows."""
    y, x = np.mgrid[:height, :width]
    return (40 + 200 * np.exp(-(((x - width * 0.2) / width) ** 2 + ((y - height * 0.3) / height) ** 2) * 20)).astype(
        np.uint8
    )


def test_maps_lie_on_their_images_whatever_size_turn_depth_or_name(mentor: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "sub" / "images").mkdir(parents=True)
    (root / "images").mkdir()
    wide, tall = scene(120, 60), scene(50, 90)
    Image.fromarray(wide).convert("RGB").save(root / "a.jpg", quality=95)
    Image.fromarray(tall).save(root / "a.png")
    Image.fromarray(wide.astype(np.uint16) * 257).save(root / "images" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(tall).copy()).save(root / "sub" / "images" / "turned.jpg", quality=95, exif=exif)
    Image.fromarray(wide).save(root / "sub" / "given.tif")
    Image.fromarray(wide[::-1].copy()).save(root / "sub" / "map.png")
    rows = ["a.jpg,", "a.png,", "images/a.png,", "sub/images/turned.jpg,", "sub/given.tif,sub/map.png", "a.png,"]
    (root / "m.csv").write_text("image,saliency\n" + "\n".join(rows) + "\n")
    written = predict_maps(grey_run(mentor), root / "m.csv", tmp_path / "out")
    assert (written.predicted, written.kept, written.labelled) == (4, 1, False)
    new = rows_of(tmp_path / "out" / "manifest.csv")
    names = [row["saliency"] for row in new]
    assert names[1] == names[5]
    assert len({name.casefold() for name in names}) == 5
    assert names[4] == "maps/sub/given.png"
    assert names[3] == "maps/sub/images/turned.png"
    assert {(row["label"], row["split"]) for row in new} == {("", "test")}
    for row, expected in zip(new, [wide, tall, wide, tall, wide[::-1], tall], strict=True):
        drawn = np.asarray(Image.open(tmp_path / "out" / row["saliency"]), np.float64)
        assert drawn.shape == expected.shape
        np.testing.assert_allclose(drawn, expected, atol=15)
    # The new manifest reads as any other, its maps being those of its images.
    dataset = FinishedRun.load(mentor, "cpu").read(tmp_path / "out" / "manifest.csv")
    assert dataset.guided.all()
    scores = FinishedRun.load(mentor, "cpu").predict(tmp_path / "out" / "manifest.csv")
    assert len(scores) == 6


def test_labels_of_other_classes_and_images_outside_the_folder_are_taken(mentor: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "lists").mkdir()
    for i in range(4):
        Image.fromarray(scene(40 + i, 40)).save(tmp_path / "pictures" / f"{i}.png")
    lines = [f"{('train', 'test')[i % 2]},{('dog', 'cat')[i % 2]},../pictures/{i}.png" for i in range(4)]
    (tmp_path / "lists" / "list.csv").write_text("\n".join(lines) + "\n")
    settings = ["data.allow_outside=true", "data.splits.test=val"]
    written = predict_maps(grey_run(mentor), tmp_path / "lists" / "list.csv", tmp_path / "out", settings)
    assert written.labelled
    assert [tuple(row.values())[:4] for row in rows_of(written.manifest)] == [
        (f"images/pictures/{i}.png", "cat" if i % 2 else "dog", "val" if i % 2 else "train", f"maps/pictures/{i}.png")
        for i in range(4)
    ]
    with pytest.raises(UsageError, match=r"--set data\.size=64: is fixed by the training"):
        predict_maps(grey_run(mentor), tmp_path / "lists" / "list.csv", tmp_path / "other", ["data.size=64"])


def test_what_cannot_be_done_is_told_before_anything_is_written(
    mentor: Path, iris: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    flags = {"data.manifest": str(iris), "data.size": 32, "method.name": "cross-entropy", "training.epochs": 1}
    flags |= {"backbone.name": "test_resnet", "backbone.weights": "random", "training.device": "cpu"}
    train(load_config(None, [], flags), tmp_path / "plain")
    out = tmp_path / "out"

    def told(*arguments: str) -> str:
        assert main(["predict-maps", *arguments, "--out", str(out)]) == 2
        assert not out.exists() or [path.name for path in out.iterdir()] == ["mine.txt"]
        return str(capsys.readouterr().err)

    run, data = str(mentor), str(iris)
    assert "method cross-entropy does not learn to predict maps" in told(str(tmp_path / "plain"), "--data", data)
    assert "--data: is required" in told(run)
    assert "is not a finished run" in told(str(tmp_path / "none"), "--data", data)
    lines = iris.read_text().splitlines()
    whole = tmp_path / "whole.csv"
    whole.write_text("\n".join(line for line in lines if ",train," not in line) + "\n")
    root = ["--set", f"data.root={iris.parent}"]
    assert "every image has a map of its own; --all" in told(run, "--data", str(whole), *root)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "is there and not empty; take another --out" in told(run, "--data", data)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_map", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="disk full; nothing was written"):
        predict_maps(FinishedRun.load(mentor, "cpu", predicts="map"), iris, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before

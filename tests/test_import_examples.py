"""Every importer on its own example: the command that it prints last trains, and broken copies are errors."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import lookhere.cli as cli
from lookhere import weights
from lookhere.bench import run as runs
from lookhere.data.importers import IMPORTERS
from lookhere.training.config import Config

Damage = Callable[[Path], object]
Line = Callable[[list[str]], tuple[int, str, str]]


OBSERVERS = {
    **dict.fromkeys(IMPORTERS, ("1",)),
    "reflacx": ("1", "2"),
    "mimic-cxr": (),
    "label-studio": ("1", "2"),
    "cvat": ("annotations",),
    "coco": ("instances",),
    "labelme": ("annotations",),
    "mask-folder": ("first", "second"),
    "fixations": ("P01", "P02"),
    "salicon": ("1", "2", "3"),
}
"""Who made the maps of each example, as its files tell."""


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Line:
    """Run a command line, without the program's name, in this process."""

    def call(arguments: list[str]) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def example(name: str, tmp_path: Path) -> tuple[Path, list[str]]:
    """The folder of an importer's example, and the arguments that import it."""
    if IMPORTERS[name].extra == "annotations":
        pytest.importorskip("defusedxml", reason="needs the extra annotations")
    folder = tmp_path / "source"
    folder.mkdir()
    IMPORTERS[name].example(folder)
    arguments = [argument.replace("{folder}", str(folder)) for argument in IMPORTERS[name].example_arguments]
    return folder, ["import", name, *arguments, "--out", str(tmp_path / "out")]


@pytest.fixture(scope="session")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub would give: weights of a resnet50 with its own 1000 classes."""
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(timm.create_model("resnet50").state_dict(), path)
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small steps on several threads wait for each other whenever another process has a core: five times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", IMPORTERS)
def test_the_command_that_import_prints_last_trains(
    name: str, example: Any, line: Line, resnet50: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = runs.train

    def briefly(config: Config, out: Path, *, resume: bool = False) -> dict[str, Any]:
        shorter = config.training.model_copy(update={"epochs": 1})
        smaller = config.data.model_copy(update={"size": 32})
        return train(config.model_copy(update={"training": shorter, "data": smaller}), out, resume=resume)

    monkeypatch.setattr(runs, "train", briefly)
    monkeypatch.setattr(weights, "_hub_file", lambda _: resnet50)
    monkeypatch.chdir(tmp_path)
    code, out, err = line(example[1])
    assert code == 0, err
    program, *command = shlex.split(out.splitlines()[-1])
    assert (program, command[0]) == ("lookhere", "train")
    code, out, err = line(command)
    assert code == 0, err
    (result,) = tmp_path.glob("runs/*/result.json")
    found = json.loads(result.read_text())
    assert found["method"] == ("cross-entropy" if name == "mimic-cxr" else "sage")
    assert found["backbone"] == "resnet50"
    assert found["selected_epoch"] == 1
    shutil.rmtree(tmp_path / "runs")  # a network of 100 MB for each importer


def _only(folder: Path, pattern: str) -> Path:
    """Return the first file of a pattern."""
    return min(folder.glob(pattern))


def cut(pattern: str) -> Damage:
    """Leave the first half of a file, of what is in it if it is packed."""

    def damage(folder: Path) -> None:
        path = _only(folder, pattern)
        packed = path.suffix == ".gz"
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        half = content[: len(content) // 2]
        path.write_bytes(gzip.compress(half) if packed else half)

    return damage


def without(pattern: str) -> Damage:
    return lambda folder: _only(folder, pattern).unlink()


def swap(pattern: str, old: str, new: str, encoding: str = "utf-8") -> Damage:
    """Replace the first match of a regular expression in a file."""

    def damage(folder: Path) -> None:
        path = _only(folder, pattern)
        text, changed = re.subn(old, new, path.read_bytes().decode(encoding), count=1)
        assert changed
        path.write_bytes(text.encode(encoding))

    return damage


BROKEN: dict[str, list[tuple[Damage, str]]] = {
    "egd-cxr": [
        (cut("fixations.csv"), r"fixations\.csv, row 111: 12 fields; expected 37"),
        (cut("images/*"), r"images/0{8}-\S+\.jpg: cannot be decoded"),
        (swap("master_sheet.csv", ",301,", ",left,"), r"master_sheet\.csv, row 2: pads \['left', .*expected pixels"),
    ],
    "reflacx": [
        (cut("main_data/metadata_phase_2.csv"), r"metadata_phase_2\.csv, row 5: 1 fields; expected 24"),
        (without("main_data/*/fixations.csv"), r"phase_1\.csv, row 2: .*P100R000000/fixations\.csv: cannot be read"),
        (swap("main_data/metadata_phase_2.csv", ",250,", ",left,"), r"phase_2\.csv, row 2: image size 'left' x"),
    ],
    "mimic-cxr": [
        (cut("*-chexpert.csv.gz"), r"chexpert\.csv\.gz, row \d+: \d+ fields; expected"),
        (cut("files/**/*.jpg"), r"0{8}-\S+\.jpg: cannot be decoded"),
        (without("*-split.csv.gz"), r"mimic-cxr-2\.0\.0-split\.csv\.gz"),
    ],
    "livdet-iris": [
        (cut("circles.csv"), r"circles\.csv, row 21: 3 fields; expected 4"),
        (swap("circles.csv", r",\d+", ",left"), r"circles\.csv, row 2: left, 250, 105; expected x, y and r above 0"),
        (cut("maps/*"), r"2020/Printed/0000\.png: its map .*maps/0000\.png: cannot be decoded"),
    ],
    "cyborg": [
        (without("train/original_data/0_real/*"), r"original\.csv, row 1, column path: '.*p1_0_real\.png' not found"),
        (cut("original.csv"), r"original\.csv, row 11, column path: 'train/original_' not found"),
        (cut("train/heatmaps/*"), r"1_fake/p1_0_fake\.png: its map .*heatmaps/p1_0_fake\.png: cannot be decoded"),
    ],
    "dnetpad": [
        (without("crops/*"), r"train\.csv, row 1, column path: 'crops/Live_0\.png' not found"),
        (cut("train.csv"), r"train\.csv, row 12, column path: 'crops/Spoof_5\.pn' not found"),
        (cut("maps/*"), r"crops/Live_0\.png: its map .*maps/Live_0\.png: cannot be decoded"),
    ],
    "label-studio": [
        (cut("export.json"), r"export\.json: not valid JSON .*line 1 column"),
        (
            swap("export.json", r"\[\[[\d.]+", '[["left"'),
            r"export\.json, task 1, annotation 100: polygon: points are \[\['left'",
        ),
    ],
    "cvat": [
        (cut("annotations.xml"), r"annotations\.xml: not valid XML .*line 19"),
        (
            swap("annotations.xml", r"55\.73", "left"),
            r"annotations\.xml, image 0, shape 1: polygon: points are .*'left'",
        ),
    ],
    "coco": [
        (cut("instances.json"), r"instances\.json: not valid JSON .*line 1 column"),
        (
            swap("instances.json", r"\[\[[\d.]+", '[["left"'),
            r"instances\.json, annotation 0: polygon: points are \[\['left'",
        ),
        (
            swap("instances.json", '"width": 64', '"width": "left"'),
            r"instances\.json, annotation 0: image width is 'left'",
        ),
    ],
    "labelme": [
        (cut("annotations/*"), r"annotations/attack0\.json: not valid JSON .*line 1 column"),
        (swap("annotations/*", r"\[\[[\d.]+", '[["left"'), r"attack0\.json, shape 1: polygon: points are \[\['left'"),
    ],
    "mask-folder": [
        (cut("first/**/*.png"), r"images/attack/01\.png: its mask .*first/attack/01\.png: cannot be decoded"),
        (cut("images/**/*.png"), r"images/attack/01\.png: cannot be decoded"),
    ],
    "fixations": [
        (cut("recordings/P01.tsv"), r"P01\.tsv, near row 366: neither UTF-8 nor UTF-16"),
        (swap("recordings/P02.tsv", "\tFixation\t", "\t", "utf-16"), r"P02\.tsv, row 2: 10 fields; expected 11"),
        (cut("images/**/*.png"), r"images/attack/01\.png: cannot be decoded"),
    ],
    "salicon": [
        (cut("fixations/*"), r"COCO_train2014_0{12}\.mat: cannot be read as a MATLAB file"),
        (cut("images/**/*.jpg"), r"COCO_train2014_0{12}\.jpg: cannot be decoded"),
    ],
}


@pytest.mark.parametrize("name", IMPORTERS)
def test_the_mean_of_the_observers_is_the_merged_map(name: str, example: Any, line: Line, tmp_path: Path) -> None:
    code, _, err = line([*example[1], "--set", "observers=true", "--set", "merge=mean"])
    assert code == 0, err
    out = tmp_path / "out"
    merged, own = _rows(out / "manifest.csv"), {path: _rows(path) for path in sorted(out.glob("manifest-*.csv"))}
    assert [path.name for path in own] == sorted(f"manifest-{observer}.csv" for observer in OBSERVERS[name])
    maps = set()
    for image, row in merged.items():
        given = [rows[image]["saliency"] for rows in own.values() if rows[image]["saliency"]]
        assert all({**rows[image], "saliency": row["saliency"]} == row for rows in own.values())
        assert bool(given) == bool(row["saliency"])
        if given:
            mean = np.mean([_pixels(out / path) for path in given], axis=0)
            np.testing.assert_allclose(_pixels(out / row["saliency"]), mean, atol=1.01)  # each is rounded to 8 bits
        maps.update(given)
    assert maps == {str(path.relative_to(out)) for path in out.glob("maps-by-observer/**/*.png")}


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


@pytest.mark.parametrize(("name", "case"), [(name, i) for name in IMPORTERS for i in range(len(BROKEN[name]))])
def test_broken_copies_are_errors_that_name_the_place(
    name: str, case: int, example: Any, line: Line, tmp_path: Path
) -> None:
    folder, command = example
    damage, message = BROKEN[name][case]
    damage(folder)
    code, _, err = line(command)
    assert code == 3
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import normalize

from lookhere.data import cache
from lookhere.data.batches import Batches
from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.check import check
from lookhere.data.decode import decode_image, decode_map
from lookhere.data.manifest import DataOptions, SaliencyOptions
from lookhere.errors import DataError

SIZE = 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPLITS = ["train"] * 11 + ["val"] * 4 + ["test"] * 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """21 images of two classes, one in three without a map, and two rows that share one."""
    draw = np.random.default_rng(0)
    rows = [["image", "label", "split", "saliency"]]
    for i, split in enumerate(SPLITS):
        Image.fromarray(draw.integers(0, 256, (20, 24), np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(draw.integers(0, 256, (40, 48), np.uint8)).save(tmp_path / f"map{i}.png")
        rows.append([f"{i}.png", ["real", "attack"][i % 2], split, "" if i % 3 == 2 else f"map{i}.png"])
    rows[2][3] = rows[1][3]
    write(tmp_path, rows)
    return tmp_path


def write(folder: Path, rows: list[list[str]]) -> None:
    with open(folder / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def read(folder: Path) -> list[list[str]]:
    with open(folder / "manifest.csv", newline="") as file:
        return list(csv.reader(file))


def options(folder: Path, **others: object) -> DataOptions:
    return DataOptions(manifest=folder / "manifest.csv", size=SIZE, cache=folder / "cache", **others)


def load(folder: Path, normalise: str = "min-max") -> Dataset:
    return load_dataset(options(folder), SaliencyOptions(normalise=normalise))


def batches(data: Dataset, split: str = "train", **others: object) -> Batches:
    return Batches(data, data.manifest.rows(split), **{"batch_size": 4, "mean": MEAN, "std": STD, **others})


def test_dataset_holds_what_was_decoded(folder: Path) -> None:
    data = load(folder)
    manifest = data.manifest
    assert data.images.shape == (21, 1, SIZE, SIZE)
    assert len(data.maps) == 13
    assert data.map_index[0] == data.map_index[1]
    for row in range(len(data)):
        np.testing.assert_array_equal(data.images[row], decode_image(manifest.image_path(row), SIZE))
        path = manifest.saliency_path(row)
        assert (data.map_index[row] < 0) == (path is None)
        if path:
            np.testing.assert_array_equal(data.maps[data.map_index[row]], decode_map(path, SIZE)[0])


def test_one_coloured_image_makes_three_channels(folder: Path) -> None:
    Image.new("RGB", (24, 20), (1, 2, 3)).save(folder / "20.png")
    data = load(folder)
    assert data.images.shape == (21, 3, SIZE, SIZE)
    assert data.images[20, :, 0, 0].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(data.images[0], np.repeat(decode_image(folder / "0.png", SIZE), 3, 0))


def test_files_are_decoded_once_and_again_when_they_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(cache, "read", lambda path, *depth, read=cache.read: decoded.append(path) or read(path, *depth))
    first = load(folder)
    assert len(decoded) == 21 + 14
    assert load(folder).sha256 == first.sha256
    assert len(decoded) == 35

    os.utime(folder / "3.png", ns=(0, 0))
    assert load(folder).sha256 == first.sha256  # the same pixels are the same data
    assert len(decoded) == 70
    Image.new("L", (24, 20), 7).save(folder / "3.png")
    changed = load(folder)
    assert changed.sha256 != first.sha256
    assert (changed.images[3] == 7).all()

    rows = read(folder)
    rows[1][1] = "attack"
    write(folder, rows)
    decoded.clear()
    assert load(folder).sha256 != changed.sha256  # a label is part of the data, but asks for no decoding
    assert not decoded


@pytest.mark.parametrize("damage", ["meta.json", "images.npy", "cut"])
def test_damaged_cache_is_built_again(folder: Path, damage: str) -> None:
    before = load(folder)
    expected = np.array(before.images)
    (entry,) = (folder / "cache").iterdir()
    if damage == "cut":
        os.truncate(entry / "maps.npy", 500)
    else:
        (entry / damage).unlink()
    after = load(folder)
    assert after.sha256 == before.sha256
    np.testing.assert_array_equal(after.images, expected)
    assert list((folder / "cache").iterdir()) == [entry]
    assert sorted(path.name for path in entry.iterdir()) == ["images.npy", "maps.npy", "meta.json"]


def test_processes_may_build_at_once(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from lookhere.data.cache import load_dataset\n"
        "from lookhere.data.manifest import DataOptions, SaliencyOptions\n"
        "folder = Path(sys.argv[1]); input()\n"
        f"data = DataOptions(manifest=folder / 'manifest.csv', size={SIZE}, cache=folder / 'cache')\n"
        "print(load_dataset(data, SaliencyOptions()).sha256)"
    )
    command = [sys.executable, "-c", script, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in running:  # imports take unequal times: all start on a word
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in running]
    assert [answer for answer, _ in answers] == [f"{load(folder).sha256}\n"] * 3, answers
    assert len(list((folder / "cache").iterdir())) == 1


def test_all_bad_files_are_told_at_once(folder: Path) -> None:
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "2.png").write_text("<html>")
    Image.new("L", (20, 20)).save(folder / "map3.png")
    Image.new("RGB", (24, 20), "red").save(folder / "map4.png")
    with pytest.raises(DataError) as caught:
        load(folder)
    found = caught.value.problems
    manifest = folder / "manifest.csv"
    assert len(found) == 4
    assert f"{manifest}, row 3, column image: '1.png'" in found[0]
    assert "truncated" in found[0]
    assert f"{manifest}, row 4, column image: '2.png': not a readable image" in found[1]
    assert "row 5, column saliency: 'map3.png': 20 x 20, but the image '3.png' is 24 x 20" in found[2]
    assert "row 6, column saliency: 'map4.png': a coloured heat map" in found[3]
    assert not list((folder / "cache").iterdir())


@pytest.mark.parametrize("size", [(12, 10), (49, 40), (7, 6)])
def test_a_map_may_have_another_size_of_the_same_aspect(folder: Path, size: tuple[int, int]) -> None:
    Image.linear_gradient("L").resize(size).save(folder / "map3.png")
    assert load(folder).maps.max() == 255


def test_full_disk_is_one_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: BinaryIO, shape: tuple[int, ...]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_header", full)
    with pytest.raises(DataError, match=r"disk full: .* are needed .*; set data.cache"):
        load(folder)
    assert not list((folder / "cache").iterdir())


def test_constant_maps_are_counted_and_finite(folder: Path) -> None:
    Image.new("L", (48, 40), 0).save(folder / "map3.png")
    Image.new("L", (48, 40), 51).save(folder / "map4.png")
    data = load(folder)
    assert data.constant.sum() == 2
    saliency = torch.cat([batch.saliency for batch in batches(data).epoch()])
    assert saliency.isfinite().all()
    assert saliency[3].unique().tolist() == [0.0]
    assert saliency[4].unique().tolist() == pytest.approx([0.2])
    guided = torch.cat([batch.has_saliency for batch in batches(data).epoch()])
    assert guided[[3, 4]].tolist() == [False, False]  # a map that marks nothing, or all alike, guides nothing
    assert torch.equal(
        guided, torch.from_numpy((data.map_index >= 0) & ~np.isin(np.arange(len(data)), [3, 4]))[: len(guided)]
    )


def test_batch_contents(folder: Path) -> None:
    data = load(folder)
    for batch in batches(data, batch_size=3, shuffle_seed=0).epoch():
        rows = batch.index.numpy()
        grey = torch.tensor(data.images[rows])
        expected = normalize(grey.expand(-1, 3, -1, -1).float() / 255, list(MEAN), list(STD))
        torch.testing.assert_close(batch.image, expected, rtol=1e-5, atol=1e-5)
        assert batch.label.tolist() == data.manifest.label[rows].tolist()
        assert batch.has_saliency.tolist() == (data.map_index[rows] >= 0).tolist()
        for i, row in enumerate(rows):
            index = data.map_index[row]
            drawn = torch.tensor(data.maps[index]) / 255 if index >= 0 else torch.zeros(SIZE, SIZE)
            torch.testing.assert_close(batch.saliency[i, 0], drawn)


def test_order_depends_on_seed_and_epoch_only(folder: Path) -> None:
    data = load(folder)

    def order(seed: int, epoch: int, size: int = 4) -> list[int]:
        return [
            int(row) for batch in batches(data, batch_size=size, shuffle_seed=seed).epoch(epoch) for row in batch.index
        ]

    running = batches(data, shuffle_seed=5)
    for epoch in range(3):
        seen = [int(row) for batch in running.epoch(epoch) for row in batch.index]
        torch.rand(3)
        assert seen == order(5, epoch) == order(5, epoch, size=3)
        assert sorted(seen) == list(range(11))
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    plain = [int(row) for batch in batches(data, "val").epoch() for row in batch.index]
    assert plain == data.manifest.rows("val").tolist()


@pytest.mark.parametrize(("size", "drop", "lengths"), [(5, True, [5, 5]), (5, False, [5, 5, 1]), (4, True, [4, 4, 3])])
def test_a_last_single_sample_can_be_dropped(folder: Path, size: int, drop: bool, lengths: list[int]) -> None:
    loader = batches(load(folder), batch_size=size, drop_single=drop)
    assert [len(batch) for batch in loader.epoch()] == lengths
    assert len(loader) == len(lengths)


def test_a_set_without_maps(folder: Path) -> None:
    write(folder, [[*row[:3], ""] if i else row for i, row in enumerate(read(folder))])
    data = load(folder)
    assert data.maps.shape == (0, SIZE, SIZE)
    batch = next(batches(data).epoch())
    assert not batch.has_saliency.any()
    assert batch.saliency.shape == (4, 1, SIZE, SIZE)
    assert not batch.saliency.any()


def test_what_stands_in_for_missing_maps(folder: Path) -> None:
    Image.new("L", (48, 40), 51).save(folder / "map3.png")  # constant: marks nothing, so it is missing too
    data = load(folder)
    own = torch.from_numpy(data.guided[data.manifest.rows("train")])
    given = next(batches(data, batch_size=99).epoch())

    uniform = next(batches(data, batch_size=99, missing="uniform").epoch())
    assert uniform.has_saliency.all()
    assert torch.equal(uniform.saliency[own], given.saliency[own])
    assert (uniform.saliency[~own] == 0.5).all()

    drawn = []
    for epoch in (1, 1, 2):
        borrow = batches(data, batch_size=99, shuffle_seed=3, missing="borrow")
        batch = next(borrow.epoch(epoch))
        order = batch.index.argsort()
        saliency = batch.saliency[order]
        assert batch.has_saliency.all()
        assert torch.equal(saliency[own], given.saliency[own])
        lent = {tuple(one.flatten().tolist()) for one in given.saliency[own]}
        assert {tuple(one.flatten().tolist()) for one in saliency[~own]} <= lent
        drawn.append(saliency)
    assert torch.equal(drawn[0], drawn[1])  # the same epoch of a resumed run
    assert not torch.equal(drawn[0], drawn[2])


def equal(one: Batches, other: Batches) -> None:
    for left, right in zip(one.epoch(2), other.epoch(2), strict=True):
        for name in ("image", "label", "saliency", "has_saliency", "weight", "index"):
            torch.testing.assert_close(getattr(right, name).cpu(), getattr(left, name))


@pytest.mark.parametrize("split", ["train", "test"])
def test_resident_pixels_give_the_same_batches(folder: Path, split: str) -> None:
    data = load(folder)
    resident = batches(data, split, shuffle_seed=1)
    resident._move()  # what a CUDA device does if its memory suffices
    equal(batches(data, split, shuffle_seed=1), resident)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("free", [2**40, 0])
def test_batches_on_a_gpu_are_those_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    there = batches(load(folder), "test", device="cuda", shuffle_seed=1)
    assert next(there.epoch()).image.device.type == "cuda"
    equal(batches(load(folder), "test", shuffle_seed=1), there)


def test_check_summarises(folder: Path) -> None:
    for i in range(21):
        Image.fromarray(np.where(np.eye(40, 48) > 0, 0, 255).astype(np.uint8)).save(folder / f"map{i}.png")
    Image.new("L", (48, 40), 0).save(folder / "map3.png")
    summary = check(options(folder), SaliencyOptions())
    assert (summary.images, summary.without_map, summary.constant_maps) == (21, 7, 1)
    assert summary.positive == "attack"
    assert summary.coverage == pytest.approx(12 / 13, abs=0.1)
    text = "\n".join(summary.lines())
    assert "train  attack" in text
    assert "inverted" in text
    assert json.loads(json.dumps(summary.counts))[0] == ["train", "attack", "", 5, 4]


def test_check_finds_the_same_pixels_in_two_splits(folder: Path) -> None:
    with Image.open(folder / "0.png") as image:
        image.save(folder / "20.bmp")
    rows = read(folder)
    rows[-1][0], rows[-1][3] = "20.bmp", ""
    write(folder, rows)
    with pytest.raises(DataError, match=r"row 22, column image: '20.bmp' \(test\) has the same pixels as '0.png' \(tr"):
        check(options(folder), SaliencyOptions())
    shutil.copy(folder / "0.png", folder / "20.png")
    rows[-1][0], rows[-1][2] = "20.png", "train"
    write(folder, rows)
    assert any("repeat" in warning for warning in check(options(folder), SaliencyOptions()).warnings)

from __future__ import annotations

import time
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from lookhere.data.check import Summary, check, inspect
from lookhere.data.leakage import difference_hash, pairs_within
from lookhere.data.manifest import DataOptions, SaliencyOptions
from lookhere.errors import DataError


def scene(seed: int, side: int = 128, colour: bool = False) -> Image.Image:
    """A picture with structure of several sizes, as photographs have."""
    draw = np.random.default_rng(seed)
    shape = (side, side, 3) if colour else (side, side)
    total = sum(gaussian_filter(draw.normal(size=shape), (s, s, 0)[: len(shape)]) * s for s in (2, 6, 18))
    return Image.fromarray(np.interp(total, (total.min(), total.max()), (20, 200)).astype(np.uint8))


class Folder:
    """A manifest of scenes, to which altered copies can be added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[str] = []
        for i in range(12):
            self.add(f"{i}.png", scene(i), ["real", "attack"][i % 2], ("train", "train", "val", "test")[i // 2 % 4])

    def add(self, name: str, image: Image.Image, label: str, split: str, **options: object) -> int:
        image.save(self.path / name, **options)
        self.rows.append(f"{name},{label},{split}")
        return len(self.rows) - 1

    def inspect(self) -> Summary:
        (self.path / "manifest.csv").write_text("\n".join(["image,label,split", *self.rows]))
        data = DataOptions(manifest=self.path / "manifest.csv", size=64, cache=self.path / "cache")
        return inspect(data, SaliencyOptions())[1]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def rows(summary: Summary, name: str) -> list[tuple[int, ...]]:
    return [example.rows for finding in summary.findings if finding.name == name for example in finding.examples]


def test_unrelated_images_are_not_reported(folder: Folder) -> None:
    summary = folder.inspect()
    assert {finding.name for finding in summary.findings} == {"missing maps"}
    assert summary.verdict == "ready for training; 1 warning to look at"


@pytest.mark.parametrize("colour", [False, True])
def test_hash_is_imagehashs(colour: bool) -> None:
    imagehash = pytest.importorskip("imagehash", reason="the oracle is not installed")
    for seed in range(20):
        image = scene(seed, colour=colour)
        planes = np.asarray(image)
        ours = difference_hash(np.moveaxis(planes, -1, 0) if colour else planes[None])
        np.testing.assert_array_equal(ours, imagehash.dhash(image, 16).hash.ravel())


@pytest.mark.parametrize("ones", [0.5, 0.02])  # of flat pictures, most bits are 0, and bands agree by chance
def test_pairs_are_those_of_brute_force(ones: float) -> None:
    draw = np.random.default_rng(0)
    bits = draw.random((150, 256)) < ones
    for i in range(60):  # relatives at distance 0 to 14
        bits[90 + i] = bits[i]
        bits[90 + i, draw.permutation(256)[: i % 15]] ^= True
    found = {
        (min(i, j), max(i, j), d)
        for one, other, distance in pairs_within(np.packbits(bits, axis=1), 11)
        for i, j, d in zip(one.tolist(), other.tolist(), distance.tolist(), strict=True)
    }
    distances = {(i, j, int((bits[i] != bits[j]).sum())) for i, j in combinations(range(150), 2)}
    assert found == {pair for pair in distances if pair[2] <= 11}
    assert len(found) >= 45


def test_case_11_the_same_pixels_in_two_splits(folder: Folder) -> None:
    copies = [folder.add("a.bmp", scene(0), "real", "train"), folder.add("b.bmp", scene(0), "real", "test")]
    summary = folder.inspect()
    # The repeat within train does not hide the leak.
    assert rows(summary, "repeats") == [(0, copies[0])]
    assert rows(summary, "leakage") == [(0, copies[1])]
    assert not rows(summary, "near-duplicates across splits")
    assert summary.verdict.startswith("not ready: 1 error")
    with pytest.raises(DataError, match=r"row 15, column image: 'b.bmp' \(test\) has the same pixels as '0.png'"):
        summary.require_ready()


def test_case_12_the_same_pixels_with_two_labels(folder: Folder) -> None:
    copy = folder.add("a.bmp", scene(0), "attack", "train")
    summary = folder.inspect()
    assert rows(summary, "contradictory labels") == [(0, copy)]
    assert (
        "'a.bmp' is 'attack' and '0.png' is 'real' in row 2, of the same pixels; expected one label"
        in (summary.errors[0])
    )


def test_near_duplicates(folder: Folder) -> None:
    image = scene(0)
    altered = [
        folder.add("jpeg.jpg", image, "real", "test", quality=50),
        folder.add("small.png", image.resize((80, 80), Image.Resampling.LANCZOS), "real", "test"),
        folder.add("bright.png", ImageEnhance.Brightness(image).enhance(1.2), "real", "val"),
    ]
    relabelled = folder.add("other.jpg", scene(1), "real", "train", quality=60)
    folder.add("mirrored.png", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "real", "test")
    summary = folder.inspect()
    assert sorted(rows(summary, "near-duplicates across splits")) == [(0, row) for row in altered]
    assert rows(summary, "near-duplicates with two labels") == [(1, relabelled)]
    assert not summary.errors
    text = "\n".join(summary.lines())
    assert "2 images of test much like one of train, 1 image of val much like one of train" in text
    assert "0.png and jpeg.jpg: correlation 0.99" in text


def test_blank_images_are_not_taken_for_copies(folder: Folder) -> None:
    blank = [folder.add("black.png", Image.new("L", (9, 9)), "real", "train")]
    blank.append(folder.add("white.png", Image.new("L", (9, 9), 255), "real", "test"))
    summary = folder.inspect()
    assert rows(summary, "blank images") == [(row,) for row in blank]
    assert not rows(summary, "near-duplicates across splits")


def test_strict_takes_warnings_for_errors(folder: Folder) -> None:
    folder.inspect()
    data = DataOptions(manifest=folder.path / "manifest.csv", size=64, cache=folder.path / "cache")
    check(data, SaliencyOptions())
    with pytest.raises(DataError, match="no train image has a map"):
        check(data, SaliencyOptions(), strict=True)


@pytest.mark.soak
def test_a_hundred_thousand_hashes_are_compared_in_a_minute() -> None:
    """Half of them flat pictures, whose bands agree by chance, and a thousand frames of one video."""
    draw = np.random.default_rng(0)
    chance = np.repeat([0.5, 0.2], 50_000)[:, None]
    bits = draw.random((100_000, 256), np.float32) < chance
    bits[:1000] = bits[0] ^ (draw.random((1000, 256)) < 0.01)
    hashes = np.packbits(bits, axis=1)
    del bits
    tracemalloc.start()
    start = time.monotonic()
    count = sum(len(one) for one, _, _ in pairs_within(hashes, 11))
    assert time.monotonic() - start < 60
    assert tracemalloc.get_traced_memory()[1] < 5e8
    assert count > 1000 * 999 / 4

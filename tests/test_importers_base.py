"""What every importer goes through: labels, merging, crops, files, problems. ``case_N`` is case N of
the project's list of acceptance cases.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookhere.data.decode import decode_image, image_pixels, read
from lookhere.data.dicom import read_dicom
from lookhere.data.importers import IMPORTERS
from lookhere.data.importers.base import (
    Importer,
    ImportOptions,
    LabelledOptions,
    Ledger,
    Sample,
    import_dataset,
    labelled_images,
)
from lookhere.data.importers.maps import (
    mask_map,
    union,
)
from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest
from lookhere.errors import DataError, UsageError
from lookhere.options import build_options, put, read_settings

W, H = 41, 29


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for kind in ("live", "attack"):
        (folder / kind).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng([i, len(kind)]).integers(0, 255, (H, W, 3), np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return folder


def test_labels_come_from_folders_or_from_a_table(images: Path, tmp_path: Path) -> None:
    ledger = Ledger()
    found = labelled_images(LabelledOptions(images=images), ledger)
    assert [(sample.name, sample.label, sample.split) for sample in found[:5:4]] == [
        ("attack/0", "attack", ""),
        ("live/0", "live", ""),
    ]
    (images / "val").mkdir()
    (images / "live").rename(images / "val" / "live")
    Image.new("L", (4, 4)).save(images / "stray.png")
    found = labelled_images(LabelledOptions(images=images), ledger)
    assert Counter((sample.label, sample.split) for sample in found) == {("attack", ""): 4, ("live", "val"): 4}
    assert [problem.endswith("the option table=CSV with the columns image,label") for problem in ledger.problems] == [
        True
    ]
    table = tmp_path / "t.csv"
    table.write_text("image,label,split,group,weight\nattack/0.png,x,train,p1,2\nval/live/1,y,,p2,\n")
    ledger = Ledger()
    found = labelled_images(LabelledOptions(images=images, table=table), ledger)
    assert [(s.name, s.label, s.split, s.group, s.weight) for s in found] == [
        ("attack/0", "x", "train", "p1", 2.0),
        ("val/live/1", "y", "", "p2", 1.0),
    ]
    assert ledger.dropped == {"image not in the table": {"count": 7, "example": "attack/1.png"}}
    table.write_text(
        "image,label,weight\n0.png,x,1\nattack/9.png,x,1\nattack/1.png,x,heavy\nattack/2,x,1\nattack/2,y,1\n"
    )
    labelled_images(LabelledOptions(images=images, table=table), ledger)
    for row, what in ((2, "may be 'attack/0.png' and"), (3, "not found below"), (4, "'heavy'"), (6, "is in row 5 too")):
        assert any(f"row {row}, column" in problem and what in problem for problem in ledger.problems), (row, what)


def _importer(read: Callable[..., Iterator[Sample]], **changes: Any) -> Importer:
    importer = replace(IMPORTERS["mask-folder"], name="test", Options=ImportOptions, read=read)
    return replace(importer, **changes)


def _samples(images: Path, **changes: Any) -> Callable[..., Iterator[Sample]]:
    def read(paths: Sequence[Path], options: ImportOptions, ledger: Ledger) -> Iterator[Sample]:
        for file in sorted(images.rglob("*.*")):
            yield Sample(file, f"{file.parent.name}/{file.stem}", file.parent.name, "", **changes)

    return read


@pytest.mark.parametrize(("merge", "bits"), [("mean", 8), ("union", 16), ("agreement", 8)])
def test_annotators_are_merged_and_crops_take_image_and_map_alike(
    images: Path, tmp_path: Path, merge: Any, bits: Any
) -> None:
    stack = np.random.default_rng(5).random((3, H, W)).astype(np.float32)
    makers = tuple(mask_map(layer) for layer in stack)
    read_all = _samples(images, maps=makers, crop=(-5, 2, 20, 99))
    out = tmp_path / "out"
    import_dataset(_importer(read_all), [images], ImportOptions(merge=merge, map_bits=bits), out)
    merged = {"mean": stack.mean(0), "union": stack.max(0), "agreement": (stack > 0.5).sum(0) >= 1.5}[merge]
    white = 2**bits - 1
    written = np.asarray(Image.open(out / "maps/live/0.png")) / white
    # The crop begins 5 pixels left of the image, and ends 70 below it.
    expected = np.pad(merged[2:, :20], ((0, 70), (5, 0)))
    np.testing.assert_allclose(written, expected, atol=0.501 / white)
    original = np.asarray(Image.open(images / "live/0.png"))
    expected = np.pad(original[2:, :20], ((0, 70), (5, 0), (0, 0)))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "images/live/0.png")), expected)


def test_maps_are_aligned_with_the_upright_image(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[2:6, 20:26] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", quality=95, exif=exif)

    def make(width: int, height: int) -> np.ndarray:
        assert (width, height) == (20, 30)
        return np.rot90(pixels[..., 0] / 255, -1).astype(np.float32)

    out = tmp_path / "out"
    import_dataset(_importer(_samples(tmp_path / "images", maps=(make,))), [folder], ImportOptions(), out)
    manifest = read_manifest(DataOptions(manifest=out / "manifest.csv"), SaliencyOptions(), training=False)
    image = np.asarray(read(manifest.image_path(0)).convert("L"))
    np.testing.assert_array_equal(image > 128, np.asarray(read(out / manifest.saliency[0])) > 128)
    assert os.stat(out / "images/a/turned.jpg").st_ino == os.stat(folder / "turned.jpg").st_ino


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "L, 0 is transparent"])
def test_what_a_crop_adds_is_black_and_opaque_in_every_mode(tmp_path: Path, mode: str) -> None:
    (tmp_path / "x").mkdir()
    image = Image.fromarray(np.random.default_rng(1).integers(1, 255, (H, W, 3), np.uint8))
    image = image.quantize(16) if mode == "P" else image.convert(mode.split(",")[0])
    file = tmp_path / "x" / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file, **({"transparency": 0} if "," in mode else {}))
    import_dataset(
        _importer(_samples(tmp_path / "x", crop=(-3, -2, W + 4, H + 1))), [file], ImportOptions(), tmp_path / "out"
    )
    expected = np.pad(np.asarray(image.convert("RGB")), ((2, 1), (3, 4), (0, 0)))
    cropped = decode_image(tmp_path / "out/images/x/a.png", size=64)
    np.testing.assert_array_equal(cropped, image_pixels(Image.fromarray(expected), size=64)[: len(cropped)])


def test_crops_that_cannot_be_meant_are_refused(images: Path, tmp_path: Path) -> None:
    for crop, message in (((W, 0, W + 9, 9), "has no pixel of the image"), ((-(10**6), 0, 9, 10**6), "the limit is")):
        with pytest.raises(DataError, match=rf"live/3\.png: the crop .* {message}"):
            import_dataset(_importer(_samples(images, crop=crop)), [images], ImportOptions(), tmp_path / "out")


def test_sixteen_bits_survive_a_crop(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    ramp = (np.arange(64 * 16, dtype=np.uint16) * 64).reshape(16, 64)
    Image.fromarray(ramp).save(tmp_path / "x" / "ramp.tif")
    read_all = _samples(tmp_path / "x", crop=(10, -2, 66, 16))
    import_dataset(_importer(read_all), [tmp_path / "x"], ImportOptions(), tmp_path / "out")
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out/images/x/ramp.png")), np.pad(ramp[:, 10:], ((2, 0), (0, 2)))
    )


def _tree(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def _import(name: str, folder: Path, out: Path) -> tuple[Any, Importer]:
    importer = IMPORTERS[name]
    arguments = [argument.replace("{folder}", str(folder)) for argument in importer.example_arguments]
    content: dict[str, Any] = {}
    settings = [value for flag, value in pairwise(arguments) if flag == "--set"]
    for option, value in read_settings(settings).items():
        put(content, option, value)
    first = arguments.index("--set") if "--set" in arguments else len(arguments)
    paths = [Path(argument) for argument in arguments[:first]]
    return import_dataset(importer, paths, build_options(importer.Options, content), out), importer


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_example_is_imported_checked_and_left_alone(name: str, tmp_path: Path) -> None:
    if IMPORTERS[name].extra == "annotations":
        pytest.importorskip("defusedxml", reason="needs the extra annotations")
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    IMPORTERS[name].example(source)
    before = _tree(source)
    imported, importer = _import(name, source, out)
    assert _tree(source) == before
    manifest = read_manifest(DataOptions(manifest=imported.manifest), SaliencyOptions())
    assert sum(count.images for count in imported.counts) == len(manifest) > 0
    assert len(list((out / "images").rglob("*.*"))) == len(set(manifest.image))
    for row in range(len(manifest)):
        if (path := manifest.saliency_path(row)) is not None:
            assert read(path).size == read(manifest.image_path(row)).size
    record = json.loads((out / "provenance.json").read_text())
    assert record["source"] == importer.name
    assert record["manifest_sha256"] == hashlib.sha256(imported.manifest.read_bytes()).hexdigest()
    again = tmp_path / "again"
    again.mkdir()
    importer.example(again)
    assert [*_tree(again).values()] == [*before.values()], "the example is not the same each time"
    written = imported.manifest.stat().st_mtime_ns
    assert _import(name, source, out)[0] == imported
    assert imported.manifest.stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="holds something else"):
        _import(name, again, out)


def test_all_problems_come_at_once_and_nothing_is_left(images: Path, tmp_path: Path) -> None:
    data = (images / "live" / "1.png").read_bytes()
    (images / "live" / "1.png").write_bytes(data[: len(data) // 2])
    (images / "attack" / "2.png").write_text("<html>")

    def too_bright(width: int, height: int) -> np.ndarray:
        return np.full((height, width), 1.5, np.float32)

    def read_all(paths: Sequence[Path], options: ImportOptions, ledger: Ledger) -> Iterator[Sample]:
        for sample in _samples(images)(paths, options, ledger):
            yield replace(sample, maps=(too_bright,)) if sample.name == "live/0" else sample

    out = tmp_path / "out"
    with pytest.raises(DataError) as error:
        import_dataset(_importer(read_all), [images], ImportOptions(), out)
    text = str(error.value)
    assert f"{images}/live/1.png: cannot be decoded" in text
    assert f"{images}/attack/2.png: not a readable image" in text
    assert f"{images}/live/0.png: its map has values outside [0, 1]" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]

    def strange(paths: Sequence[Path], options: ImportOptions, ledger: Ledger) -> Iterator[Sample]:
        ledger.problems.append("row 3: something")
        for name, label, split in (("../up", "a", ""), ("one", " ", ""), ("ONE", "b", "tset"), ("/etc/x", "a", "")):
            yield Sample(images / name, name, label, split)

    with pytest.raises(DataError) as error:
        import_dataset(_importer(strange), [images], ImportOptions(), out)
    assert len(error.value.problems) == 6
    for part in ("row 3", "'../up' cannot be", "has no label", "'ONE', as", "'tset' is no split", "'/etc/x' cannot be"):
        assert part in str(error.value)


def test_what_stands_in_the_way_is_named(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def missing(*_: object) -> Iterator[Sample]:
        import not_there_at_all  # type: ignore[import-not-found] # noqa: F401

        return iter(())

    def empty(paths: Sequence[Path], options: ImportOptions, ledger: Ledger) -> Iterator[Sample]:
        ledger.drop("calibration", count=3)
        return iter(())

    def run(read: Callable[..., Iterator[Sample]], path: Path = images) -> None:
        import_dataset(_importer(read, extra="gaze"), [path], ImportOptions(), out)

    with pytest.raises(
        UsageError, match=r"not_there_at_all, which is not installed; run: pip install 'lookhere\[gaze\]'"
    ):
        run(missing)
    with pytest.raises(DataError, match=r"no images to import \(calibration: 3\)"):
        run(empty)
    with pytest.raises(DataError, match="nowhere: not found"):
        run(empty, tmp_path / "nowhere")
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"--out: .* holds something else"):
        run(_samples(images))


def test_case_22_empty_maps_are_counted(images: Path, tmp_path: Path) -> None:
    read_all = _samples(images, maps=(union(),))
    imported = import_dataset(_importer(read_all), [images], ImportOptions(), tmp_path / "out")
    assert imported.warnings == ["8 maps without any salient pixel, such as that of 'attack/0'"]


def test_a_missing_package_is_an_error_that_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cvat, options = IMPORTERS["cvat"], {"images": tmp_path / "cvat" / "images"}
    cvat.example(tmp_path / "cvat")
    for name in ("defusedxml", "defusedxml.ElementTree"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"needs the package defusedxml.* pip install 'lookhere\[annotations\]'"):
        import_dataset(cvat, [tmp_path / "cvat" / "annotations.xml"], cvat.Options(**options), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UsageError, match=r"pip install 'lookhere\[medical\]'"):
        read_dicom(tmp_path / "cvat" / "annotations.xml")
    assert not (tmp_path / "out").exists()

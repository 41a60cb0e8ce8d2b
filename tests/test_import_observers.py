"""The maps of single observers, beside those that are merged of all."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from lookhere.data.importers import IMPORTERS
from lookhere.data.importers.base import Imported, Importer, ImportOptions, Ledger, Sample, import_dataset
from lookhere.data.importers.lookup import short_names
from lookhere.data.importers.maps import mask_map
from lookhere.data.importers.writing import name_observers
from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest
from lookhere.errors import UsageError

W, H = 20, 14


def _maps(path: Path) -> dict[str, str]:
    """Return the map of each image of a manifest, by the image's name without suffix."""
    with path.open(newline="") as file:
        return {Path(row["image"]).stem: row["saliency"] for row in csv.DictReader(file)}


@pytest.fixture
def source(tmp_path: Path) -> tuple[Importer, Path, dict[str, list[np.ndarray]]]:
    """Eight images of two classes, of which Ann looked at all, Ben at every second, and nobody at the last."""
    folder, random = tmp_path / "images", np.random.default_rng(3)
    folder.mkdir()
    layers: dict[str, list[np.ndarray]] = {}
    for i in range(8):
        Image.fromarray(random.integers(0, 255, (H, W), np.uint8)).save(folder / f"{i}.png")
        count = 0 if i == 7 else 1 + i % 2
        layers[str(i)] = [random.random((H, W)).astype(np.float32) for _ in range(count)]

    def read(paths: Sequence[Path], options: ImportOptions, ledger: Ledger) -> Iterator[Sample]:
        for name, own in layers.items():
            makers = tuple(map(mask_map, own))
            observers = ("Dr. Ann/Lee", "../ben")[: len(own)]
            split = "val" if name in "67" else "train"
            yield Sample(
                folder / f"{name}.png", name, "ab"[int(name) % 2], split, makers, observers, crop=(-2, 1, 9, 12)
            )

    return replace(IMPORTERS["mask-folder"], Options=ImportOptions, read=read), folder, layers


def test_each_observer_has_maps_and_a_manifest(source: Any, tmp_path: Path) -> None:
    importer, folder, layers = source
    options = ImportOptions(observers=True, merge="union", map_bits=16)
    imported = import_dataset(importer, [folder], options, tmp_path / "out")
    plain = import_dataset(importer, [folder], options.model_copy(update={"observers": False}), tmp_path / "plain")
    assert not plain.by_observer
    assert imported.manifest.read_bytes() == plain.manifest.read_bytes()
    ann, ben = imported.by_observer
    assert [path.name for path in imported.by_observer] == ["manifest-Dr.-Ann-Lee.csv", "manifest-ben.csv"]
    for index, path in enumerate((ann, ben)):
        manifest = read_manifest(DataOptions(manifest=path), SaliencyOptions())  # it can be trained on
        for row, (_, own) in enumerate(layers.items()):
            place = manifest.saliency_path(row)
            assert (place is not None) == (len(own) > index)
            if place:
                written = np.asarray(Image.open(place)) / 65535
                expected = np.pad(own[index], ((0, 0), (2, 0)))[1:12, :11]
                np.testing.assert_allclose(written, expected, atol=0.501 / 65535)
    for file in (tmp_path / "plain/maps").iterdir():
        assert file.read_bytes() == (tmp_path / "out/maps" / file.name).read_bytes()
    record = json.loads((tmp_path / "out/provenance.json").read_text())["by_observer"]
    assert [(one["observer"], one["manifest"], one["maps"]) for one in record] == [
        ("Dr. Ann/Lee", ann.name, 7),
        ("../ben", ben.name, 3),
    ]


def test_a_changed_manifest_of_an_observer_is_no_finished_import(source: Any, tmp_path: Path) -> None:
    importer, folder, _ = source
    options = ImportOptions(observers=True)
    imported = import_dataset(importer, [folder], options, tmp_path / "out")
    assert import_dataset(importer, [folder], options, tmp_path / "out") == imported
    imported.by_observer[0].write_text("image,label,split\n")
    with pytest.raises(UsageError, match="holds something else"):
        import_dataset(importer, [folder], options, tmp_path / "out")


def test_unlike_observers_never_share_a_name() -> None:
    def sample(name: str, *observers: str) -> Sample:
        return Sample(Path(name), name, "a", "", (mask_map(np.zeros((1, 1))),) * (len(observers) or 2), observers)

    samples = [
        sample("0", "a/b", "A b", "a?b", "..", "a/b"),
        sample("1", "a b-2", "a/b"),
        sample("2"),
        sample("3", "é" * 300),
    ]
    named, names = name_observers(samples)
    assert named[0] == ("a-b", "A-b-2", "a-b-3", "observer", "a-b-4")
    assert named[1] == ("a-b-2-2", "a-b")
    assert named[2] == ("1", "2")
    assert len(f"manifest-{named[3][0]}.csv".encode()) < 256
    assert len({name.casefold() for name in names}) == len(names) == 9
    assert names["a-b"] == names["a-b-4"] == "a/b"


def test_files_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for place in ("ann/one", "ben/one"):
        (tmp_path / place).mkdir(parents=True)
    paths = [tmp_path / "ann/export.v1.json", tmp_path / "ben/export.v1.json"]
    assert list(short_names(paths).values()) == ["ann/export.v1", "ben/export.v1"]
    assert list(short_names([tmp_path / "ann", tmp_path / "ben", tmp_path / "x.csv"]).values()) == ["ann", "ben", "x"]
    assert list(short_names([tmp_path / "a.csv", tmp_path / "a.tsv"]).values()) == [
        str(tmp_path / "a.csv"),
        str(tmp_path / "a.tsv"),
    ]


def _import(name: str, paths: Sequence[Path], source: Path, **options: Any) -> Imported:
    importer = IMPORTERS[name]
    given = importer.Options(images=source / "images", observers=True, **options)
    return import_dataset(importer, paths, given, source / "out")


def test_labelme_observers_are_the_folders_given(tmp_path: Path) -> None:
    """An image that only the second of them marked must not count as the first's."""
    IMPORTERS["labelme"].example(tmp_path)
    shutil.copytree(tmp_path / "annotations", tmp_path / "ben")
    (tmp_path / "annotations").rename(tmp_path / "ann")
    (tmp_path / "ann/attack0.json").unlink()
    _import("labelme", [tmp_path / "ann", tmp_path / "ben"], tmp_path)
    ann, ben = (_maps(tmp_path / f"out/manifest-{name}.csv") for name in ("ann", "ben"))
    assert [name for name in ben if ben[name] and not ann[name]] == ["attack0"]
    assert not [name for name in ann if ann[name] and not ben[name]]


def test_coco_annotators_keep_their_names(tmp_path: Path) -> None:
    IMPORTERS["coco"].example(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    for i, annotation in enumerate(content["annotations"]):
        annotation["who"] = ("ann", "ben")[i % 2]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    imported = _import("coco", [tmp_path / "instances.json"], tmp_path, annotator="who")
    assert {path.name for path in imported.by_observer} == {"manifest-ann.csv", "manifest-ben.csv"}


def test_salicon_observers_keep_their_place(tmp_path: Path) -> None:
    """The second of three did not fixate anything: the third stays the third."""
    IMPORTERS["salicon"].example(tmp_path)
    file = min((tmp_path / "fixations").iterdir())
    content = loadmat(file)
    content["gaze"][1, 0]["fixations"] = np.zeros((0, 2))
    savemat(file, {name: value for name, value in content.items() if not name.startswith("__")})
    _import("salicon", [tmp_path / "fixations"], tmp_path, sigma=4, sigma_unit="px")
    own = [_maps(tmp_path / f"out/manifest-{number}.csv") for number in (1, 2, 3)]
    assert [bool(maps[file.stem]) for maps in own] == [True, False, True]

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from lookhere.data.attacks import ATTACKS, BONA_FIDE, present
from lookhere.data.eye import Subject
from lookhere.data.iris import KNOWN_ATTACKS, annotate, make_iris
from lookhere.errors import UsageError


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_iris(tmp_path_factory.mktemp("iris"), size=96, train=240, val=40, test=240, maps=0.25)


@pytest.fixture(scope="module")
def table(iris: Path) -> pd.DataFrame:
    return pd.read_csv(iris, keep_default_na=False)


def grey(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image, dtype=np.float64)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_manifest_keeps_its_contract(iris: Path, table: pd.DataFrame) -> None:
    assert list(table) == ["image", "label", "split", "saliency", "type", "group"]
    assert table["split"].value_counts().to_dict() == {"train": 240, "val": 40, "test": 240}
    assert ((table["label"] == "bona fide") == (table["type"] == BONA_FIDE)).all()
    assert set(table["label"]) == {"bona fide", "attack"}
    types = table.groupby("split")["type"].agg(set).to_dict()
    assert types["train"] == types["val"] == {BONA_FIDE, *KNOWN_ATTACKS}
    assert types["test"] == {BONA_FIDE, *ATTACKS}
    assert (table.groupby("group")["split"].nunique() == 1).all()
    mapped = table["saliency"] != ""
    assert mapped.groupby(table["split"]).sum().to_dict() == {"train": 60, "val": 40, "test": 240}
    written = {str(path.relative_to(iris.parent)) for path in iris.parent.rglob("*.png")}
    assert written == {*table["image"], *table["saliency"]} - {""}
    assert {grey(iris.parent / name).shape for name in written} == {(96, 96)}


def test_same_arguments_same_bytes_and_no_image_depends_on_the_number_of_others(tmp_path: Path) -> None:
    few, again, more, other = (tmp_path / name for name in ("few", "again", "more", "other"))
    counts = {"size": 96, "train": 8, "val": 4, "test": 8}
    make_iris(few, seed=3, **counts)
    make_iris(again, seed=3, **counts)
    make_iris(more, seed=3, **counts | {"train": 13, "val": 9, "test": 17})
    make_iris(other, seed=4, **counts)
    assert digests(few) == digests(again)
    pictures = {name: digest for name, digest in digests(few).items() if name.endswith(".png")}
    assert len(pictures) == 40
    assert pictures.items() <= digests(more).items()
    assert not pictures.items() & digests(other).items()


def test_fewer_maps_are_a_subset_and_leave_the_images_alone(tmp_path: Path) -> None:
    some, all_ = (make_iris(tmp_path / str(maps), size=96, train=12, val=4, test=8, maps=maps) for maps in (0.5, 1.0))
    half, whole = digests(some.parent), digests(all_.parent)
    for name in ("manifest.csv", "README.md"):
        assert half.pop(name) != whole.pop(name)
    assert half.items() < whole.items()
    assert len(whole) - len(half) == 6


def test_the_sensor_tells_the_class_in_training_but_not_in_the_test_split(iris: Path, table: pd.DataFrame) -> None:
    def corner_noise(name: str) -> float:
        corner = grey(iris.parent / name)[-16:, :16]
        return float(np.diff(corner, n=2, axis=0).std())

    table = table.assign(noise=table["image"].map(corner_noise), attack=table["label"] == "attack")
    auroc = {split: roc_auc_score(rows["attack"], rows["noise"]) for split, rows in table.groupby("split")}
    assert auroc["train"] > 0.75
    assert auroc["val"] > 0.75
    assert abs(auroc["test"] - 0.5) < 0.1
    test = table[table["split"] == "test"]
    for kind in ATTACKS:
        rows = test[test["type"].isin([BONA_FIDE, kind])]
        assert abs(roc_auc_score(rows["attack"], rows["noise"]) - 0.5) < 0.15, kind


def test_maps_cover_the_iris_imperfectly(iris: Path, table: pd.DataFrame) -> None:
    centre = np.hypot(*(np.indices((96, 96)) - 47.5)) < 0.6 * 48
    share = []
    for name in table["saliency"][table["saliency"] != ""]:
        painted = grey(iris.parent / name)
        assert painted.max() > 100
        share.append(painted[centre].sum() / painted.sum())
    assert np.mean(share) > 0.75
    assert np.mean(np.asarray(share) < 0.99) > 0.1  # some marks lie elsewhere


@pytest.mark.parametrize("kind", [BONA_FIDE, *ATTACKS])
def test_what_betrays_an_attack_lies_under_the_evidence(kind: str) -> None:
    # Against the same eye in the same pose, drawn as bona fide: a cue elsewhere would make the map a lie.
    inside, outside, agreement = [], [], []
    for seed in range(12):
        subject = Subject.draw(np.random.default_rng([seed, 0]))
        image, evidence = present(kind, subject, np.random.default_rng([seed, 1]), 96, 0.5)
        genuine, _ = present(BONA_FIDE, subject, np.random.default_rng([seed, 1]), 96, 0.5)
        assert 0 <= image.min() < image.max() <= 1
        assert 0.02 < evidence.mean() < 0.5
        change = np.abs(image - genuine)
        inside.append(change[evidence > 0.5].mean())
        outside.append(change[evidence < 0.05].mean())
        first, second = (annotate(evidence, np.random.default_rng([seed, 2, person])) for person in range(2))
        agreement.append(np.minimum(first, second).sum() / np.maximum(first, second).sum())
        assert not np.array_equal(first, evidence)
    if kind != BONA_FIDE:
        assert np.mean(inside) > 3 * np.mean(outside)
    assert 0.3 < np.mean(agreement) < 0.9  # two people paint much the same, never the same


def test_a_finished_set_is_left_alone_and_an_interrupted_one_is_drawn_again(tmp_path: Path) -> None:
    arguments = {"size": 96, "train": 4, "val": 4, "test": 8}
    manifest = make_iris(tmp_path / "set", **arguments)
    before = digests(manifest.parent)
    image = manifest.parent / "images/test-00007.png"
    image.write_bytes(b"mine")
    make_iris(tmp_path / "set", **arguments)
    assert image.read_bytes() == b"mine"
    manifest.unlink()
    make_iris(tmp_path / "set", **arguments)
    assert digests(manifest.parent) == before
    with pytest.raises(UsageError, match="something other"):
        make_iris(tmp_path / "set", seed=1, **arguments)


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="something other"):
        make_iris(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        make_iris(tmp_path / "notes.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}
    with pytest.raises(UsageError, match=r"seed is -1.*size is 64.*train is 3.*test is 0.*maps is 1\.5"):
        make_iris(tmp_path / "new", seed=-1, size=64, train=3, test=0, maps=1.5)
    assert not (tmp_path / "new").exists()

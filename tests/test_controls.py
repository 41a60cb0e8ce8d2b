"""Controls on maps: what training sees in place of the given maps, and that nothing else does."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lookhere.cli import main
from lookhere.data.batches import Batches
from lookhere.data.cache import Dataset
from lookhere.data.controls import centred_map, control_maps, derangement, reshape_maps
from lookhere.data.manifest import Manifest, SaliencyOptions
from lookhere.errors import DataError
from lookhere.training import fit

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel")

SIDE = 12
SPLITS = ["train"] * 40 + ["val"] * 10 + ["test"] * 6


def make_dataset(maps: np.ndarray | None = None) -> Dataset:
    """56 rows of two classes: every fourth has no map, rows 1 and 2 share one, and that of row 5 is constant."""
    draws = np.random.default_rng(0)
    n = len(SPLITS)
    files = ["" if i % 4 == 3 else f"map{1 if i == 2 else i}.png" for i in range(n)]
    order: dict[str, int] = {}
    map_index = np.array([order.setdefault(file, len(order)) if file else -1 for file in files])
    if maps is None:
        maps = np.zeros((len(order), SIDE, SIDE), np.uint8)
        for one in maps:
            y, x = draws.integers(1, 5, 2)
            one[y : y + 6, x : x + 5] = draws.integers(1, 256, (6, 5))
        maps[map_index[5]] = 60
    manifest = Manifest(
        path=Path("m.csv"),
        root=Path(),
        classes=("real", "attack"),
        positive="attack",
        positive_reason="",
        image=[f"{i}.png" for i in range(n)],
        image_file=[f"{i}.png" for i in range(n)],
        label=np.arange(n) % 5 % 2,
        split=np.array(SPLITS),
        saliency=files,
        type=[["", "print", "lens"][i % 5 % 2 * (1 + i % 2)] for i in range(n)],
        group=[""] * n,
        weight=np.ones(n),
        line=np.arange(n) + 2,
    )
    images = np.zeros((n, 1, SIDE, SIDE), np.uint8)
    constant = np.zeros(len(maps), bool)
    constant[map_index[5]] = True
    return Dataset(manifest, images, maps, map_index, constant, "sha")


@pytest.fixture
def data() -> Dataset:
    return make_dataset()


def control(data: Dataset, seed: int = 0, **options: Any) -> Dataset:
    return control_maps(data, SaliencyOptions(**options), seed)


def shown(data: Dataset, split: str = "train", size: int = 7, **others: Any) -> tuple[np.ndarray, np.ndarray]:
    """What training is given of each row of a split, in the order of the manifest: its map, and whether it guides."""
    rows = data.manifest.rows(split)
    batches = Batches(data, rows, batch_size=size, mean=(0.5,) * 3, std=(0.5,) * 3, shuffle_seed=1, **others)
    maps, guided = np.zeros((len(rows), *data.maps.shape[1:])), np.zeros(len(rows), bool)
    for batch in batches.epoch(3):
        at = np.searchsorted(rows, batch.index.numpy())
        maps[at], guided[at] = batch.saliency[:, 0].numpy(), batch.has_saliency.numpy()
    return maps, guided


def test_without_a_control_nothing_changes(data: Dataset) -> None:
    assert control(data) is data
    assert control(data, missing="borrow", radius=3) is data


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("source", ["flipped", "uniform", "centre", "shuffled"])
def test_sources(data: Dataset, source: str, split: str) -> None:
    maps, guided = shown(data, split)
    seen, now = shown(control(data, source=source), split)
    assert np.array_equal(now, guided)  # rows without a map, or with a constant one, get none by a control
    assert 5 not in np.flatnonzero(now) or split == "val"
    assert not seen[~now].any()
    if source == "flipped":
        np.testing.assert_allclose(seen[now], 1 - maps[guided], atol=1e-6)
        assert seen.min() >= 0
    elif source == "uniform":
        assert (seen[now] == 0.5).all()
    elif source == "centre":
        sigma, middle = SIDE / 4, (SIDE - 1) / 2
        for y, x in ((0, 0), (5, 6), (11, 3)):
            expected = np.exp(-((y - middle) ** 2 + (x - middle) ** 2) / (2 * sigma**2))
            np.testing.assert_allclose(seen[now][:, y, x], expected, atol=0.5 / 255 + 1e-6)
    else:
        assert (np.abs(seen - maps)[now].max(axis=(1, 2)) > 0).all()
        assert sorted(m.tobytes() for m in seen[now]) == sorted(m.tobytes() for m in maps[guided])


def test_only_training_is_changed(data: Dataset) -> None:
    before = [array.copy() for array in (data.maps, data.map_index, data.constant)]
    for source in ("flipped", "uniform", "centre", "shuffled"):
        taught = control(data, source=source, fraction=0.5, reshape="dilate", radius=1)
        assert not taught.guided[data.manifest.rows("test")].any()
        assert taught.manifest is data.manifest
    for array, old in zip((data.maps, data.map_index, data.constant), before, strict=True):
        assert np.array_equal(array, old)


def test_a_shuffle_is_fixed_by_the_seed_alone(data: Dataset) -> None:
    first = shown(control(data, source="shuffled"))[0]
    assert np.array_equal(shown(control(data, source="shuffled"), size=40)[0], first)
    others = [shown(control(data, seed, source="shuffled"))[0] for seed in range(1, 4)]
    assert all(not np.array_equal(other, first) for other in others)
    # A split that changes elsewhere leaves it as it is.
    moved = replace(data, manifest=replace(data.manifest, split=np.array(SPLITS[:-6] + ["val"] * 6)))
    assert np.array_equal(shown(control(moved, source="shuffled"))[0], first)


def test_a_derangement_is_found_where_there_is_one() -> None:
    draws = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        maps = draws.integers(0, draws.integers(1, 9), draws.integers(1, 12)) + 3
        exchanged = derangement(maps, draws)
        possible = 2 * np.bincount(maps).max() <= len(maps)  # by Hall's theorem
        assert (exchanged is not None) == possible
        if exchanged is not None:
            found += 1
            assert sorted(exchanged) == sorted(maps)
            assert (exchanged != maps).all()
    assert 50 < found < 350
    reached = {tuple(derangement(np.arange(4), draws)) for _ in range(200)}
    assert len(reached) == 6  # all cyclic orders of four


def test_fractions_are_nested_exact_and_in_proportion(data: Dataset) -> None:
    train = data.rows("train", guided=True)
    assert len(train) == 29
    for seed in range(5):
        larger = set(train.tolist())
        for fraction in (0.9, 0.5, 0.31, 0.1, 0.001):
            taught = control(data, seed, fraction=fraction)
            rows = taught.rows("train", guided=True)
            assert len(rows) == max(1, int(np.floor(fraction * 29 + 0.5)))
            assert set(rows.tolist()) <= larger
            larger = set(rows.tolist())
            assert np.array_equal(taught.map_index[rows], data.map_index[rows])
            assert np.array_equal(taught.rows("val", guided=True), data.rows("val", guided=True))
            share = np.bincount(data.manifest.label[rows], minlength=2)
            expected = fraction * np.bincount(data.manifest.label[train])
            assert np.abs(share - expected).max() <= 1
            for others in ({"source": "uniform"}, {"source": "flipped", "reshape": "dilate", "radius": 1}):
                again = control(data, seed, fraction=fraction, **others).rows("train", guided=True)
                assert np.array_equal(again, rows)  # whatever becomes of their maps
    draws = {tuple(control(data, seed, fraction=0.3).rows("train", guided=True)) for seed in range(5)}
    assert len(draws) == 5


def test_the_order_of_operations(data: Dataset) -> None:
    half = control(data, fraction=0.5)
    mixed = control(data, fraction=0.5, source="shuffled")
    rows = half.rows("train", guided=True)
    assert sorted(mixed.map_index[rows]) == sorted(half.map_index[rows])  # the fraction is drawn first

    grown = shown(control(data, source="flipped", reshape="dilate", radius=2))[0]
    shrunk = shown(control(data, reshape="erode", radius=2))[0]
    guided = data.guided[data.manifest.rows("train")]
    np.testing.assert_allclose(grown[guided], 1 - shrunk[guided], atol=1e-6)  # the source is reshaped

    filled, all_guided = shown(control(data, fraction=0.5, source="flipped"), missing="uniform")
    own = half.guided[data.manifest.rows("train")]
    assert all_guided.all()
    assert (filled[~own] == 0.5).all()
    np.testing.assert_allclose(filled[own], 1 - shown(data)[0][own], atol=1e-6)
    borrowed = shown(control(data, fraction=0.5, source="centre"), missing="borrow")[0]
    assert (borrowed == borrowed[0]).all()
    uniform = control(data, source="uniform")
    assert (shown(uniform, missing="borrow")[0] == 0.5).all()
    assert (shown(control(data, source="uniform", reshape="box"))[0] == shown(uniform)[0]).all()


@pytest.mark.parametrize("radius", [1, 2, 5, 40])
def test_dilation_and_erosion_pixel_by_pixel(radius: int) -> None:
    maps = np.random.default_rng(1).integers(0, 256, (3, 9, 9), np.uint8)
    grown, shrunk = (reshape_maps(maps, how, radius) for how in ("dilate", "erode"))
    for y in range(9):
        for x in range(9):
            near = maps[:, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            assert grown[:, y, x].tolist() == near.max(axis=(1, 2)).tolist()
            assert shrunk[:, y, x].tolist() == near.min(axis=(1, 2)).tolist()


def test_boxes_hold_what_is_above_half_of_the_maximum() -> None:
    maps = np.random.default_rng(2).integers(0, 101, (20, 9, 9), np.uint8)
    maps[:, :, :2] = 3
    maps[0], maps[1] = 0, 0
    maps[1, 4, 7] = 1
    for one, box in zip(maps, reshape_maps(maps, "box", 8), strict=True):
        marked = [(y, x) for y in range(9) for x in range(9) if one[y, x] > one.max() / 2]
        expected = np.zeros((9, 9), int)
        if marked:
            (top, left), (bottom, right) = np.min(marked, axis=0), np.max(marked, axis=0)
            expected[top : bottom + 1, left : right + 1] = 255
        assert np.array_equal(box, expected)


def test_reshaping_is_done_once_and_for_used_maps_only(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    from lookhere.data import controls

    monkeypatch.setattr(
        controls, "reshape_maps", lambda maps, *rest: counted.append(len(maps)) or reshape_maps(maps, *rest)
    )
    taught = control(data, fraction=0.3, reshape="dilate", radius=1)
    used = {data.map_index[row] for row in (*taught.rows("train", guided=True), *data.rows("val", guided=True))}
    for _ in range(2):
        shown(taught)
    assert counted == [len(used)] == [len(taught.maps)]


def test_maps_that_lose_their_shape_guide_nothing(data: Dataset) -> None:
    maps = np.zeros_like(data.maps)
    maps[:, 2:10, 2:10] = 255
    maps[0, 6:] = maps[0, :, 6:] = 0  # only 4 x 4 pixels, which a radius of 2 wipes out
    data = replace(data, maps=maps, constant=np.zeros(len(maps), bool))
    with pytest.warns(
        UserWarning, match=r'"erode" makes 1 of 30 train maps one value throughout, which guides nothing'
    ):
        taught = control(data, reshape="erode", radius=2)
    assert taught.rows("train", guided=True).tolist() == data.rows("train", guided=True)[1:].tolist()
    with pytest.raises(DataError, match=r"makes 30 of 30 train maps one value throughout.*: lower saliency.radius"):
        control(data, reshape="erode", radius=4)


def test_what_cannot_be_shuffled(data: Dataset) -> None:
    alone = replace(data, map_index=np.where(np.arange(len(data)) == 0, data.map_index, -1))
    with pytest.raises(DataError, match=r"of 1 train row with a map it needs another; expected two or more"):
        control(alone, source="shuffled")
    with pytest.raises(DataError, match="of 1 train row"):
        control(data, source="shuffled", fraction=0.01)
    files = ["one.png" if i % 4 < 2 else file for i, file in enumerate(data.manifest.saliency)]
    index = np.where(np.arange(len(data)) % 4 < 2, data.map_index[0], data.map_index)
    shared = replace(data, map_index=index, manifest=replace(data.manifest, saliency=files))
    with pytest.raises(DataError, match=r"of 30 train rows with a map 20 share 'one.png'"):
        control(shared, source="shuffled")
    unmapped = replace(data, map_index=np.full(len(data), -1))
    for source in ("shuffled", "flipped", "uniform", "centre"):
        for fraction in (1.0, 0.5):
            assert not control(unmapped, source=source, fraction=fraction, reshape="box").guided.any()
    # In val, which only a stage that learns maps looks at, they are left out instead.
    index = np.where(np.array(SPLITS) == "val", data.map_index[0], data.map_index)
    taught = control(replace(data, map_index=index), source="shuffled")
    assert len(taught.rows("val", guided=True)) == 0
    assert len(taught.rows("train", guided=True)) == 29


@pytest.mark.parametrize(
    "options", [{"source": s} for s in ("flipped", "shuffled", "uniform", "centre")] + [{"fraction": 0.5}]
)
def test_no_control_reads_all_maps(tmp_path: Path, options: dict[str, Any]) -> None:
    maps = np.memmap(tmp_path / "maps", np.uint8, "w+", shape=(43, 1000, 1000))
    data = make_dataset(maps)
    tracemalloc.start()
    taught = control(data, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if options == {"source": "centre"}:
        assert len(taught.maps) == 1
    else:
        assert taught.maps is maps
        assert peak < maps.nbytes / 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("source", ["flipped", "uniform", "centre", "shuffled"])
def test_on_a_gpu_too(data: Dataset, source: str) -> None:
    taught = control(data, source=source)
    for here, there in zip(shown(taught), shown(taught, device="cuda"), strict=True):
        np.testing.assert_allclose(there, here, atol=1e-6)


@pytest.mark.parametrize("source", ["flipped", "uniform", "centre", "shuffled"])
def test_resident_maps_are_the_same(data: Dataset, source: str) -> None:
    taught = control(data, source=source)
    rows = data.manifest.rows("train")
    one, other = (Batches(taught, rows, batch_size=9, mean=(0.5,) * 3, std=(0.5,) * 3) for _ in range(2))
    other._move()  # what a CUDA device does if its memory suffices
    for here, there in zip(one.epoch(), other.epoch(), strict=True):
        assert torch.equal(here.saliency, there.saliency)
        assert torch.equal(here.has_saliency, there.has_saliency)


def train(iris: Path, out: Path, *settings: str, method: str = "sage") -> int:
    fixed = ["data.size=64", "training.epochs=1", "training.batch_size=8", "training.threads=1"]
    arguments = [part for setting in (*fixed, *settings) for part in ("--set", setting)]
    network = ["--backbone", "test_resnet", "--weights", "random", "--device", "cpu"]
    return main(["train", "--data", str(iris), "--method", method, *network, *arguments, "--out", str(out)])


def test_every_control_by_the_command_line(iris: Path, tmp_path: Path) -> None:
    results, losses = {}, {}
    asked = {
        "given": [],
        **{source: [f"saliency.source={source}"] for source in ("flipped", "shuffled", "uniform", "centre")},
        "half": ["saliency.fraction=0.5"],
        "half, box": ["saliency.fraction=0.5", "saliency.reshape=box"],
        "filled": ["saliency.fraction=0.5", "saliency.missing=uniform"],
    }
    for name, settings in asked.items():
        assert train(iris, tmp_path / name, *settings) == 0
        results[name] = json.loads((tmp_path / name / "result.json").read_text())
        losses[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["train"]["total"]
    counts = {name: result["data"]["maps"] for name, result in results.items()}
    given = counts["given"]
    assert given["train"] == 12
    for name, count in counts.items():
        assert count == {**given, "train": 6 if name.startswith(("half", "filled")) else 12}, name
    assert len(set(losses.values())) == len(losses)
    assert len({result["identity"] for result in results.values()}) == len(results)
    assert len({result["data"]["sha256"] for result in results.values()}) == 1  # the data is the same


def test_evaluation_and_the_choice_of_the_epoch_see_the_given_maps(
    iris: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(dataset: Dataset, rows: np.ndarray, *rest: Any, original: Any = fit.make_batches, **others: Any) -> Any:
        seen.append((dataset.flipped, {*dataset.manifest.split[rows].tolist()}))
        return original(dataset, rows, *rest, **others)

    monkeypatch.setattr(fit, "make_batches", watched)
    monkeypatch.setattr("lookhere.bench.run.make_batches", watched)
    assert train(iris, tmp_path / "run", "saliency.source=flipped", "method.map_epochs=1", method="mentor") == 0
    learns_maps = [(True, {"train"}), (True, {"val"})]
    learns_labels = [(True, {"train"}), (False, {"val"})]
    assert seen[:4] == learns_maps + learns_labels
    assert all(call in learns_maps + learns_labels for call in seen[:-2])
    assert seen[-2:] == [(False, {"val"}), (False, {"test"})]


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["saliency.source=mirrored"], 2, "saliency.source: expected given|flipped|shuffled|uniform|centre"),
        (["saliency.fraction=0"], 2, "saliency.fraction: expected number > 0 and ≤ 1"),
        (["saliency.reshape=blur"], 2, "saliency.reshape: expected none|dilate|erode|box"),
        (["saliency.source=shuffled", "saliency.fraction=0.01"], 3, "expected two or more"),
        (["saliency.reshape=erode", "saliency.radius=400"], 3, "lower saliency.radius"),
    ],
)
def test_what_is_refused(iris: Path, tmp_path: Path, capsys: Any, settings: list[str], code: int, message: str) -> None:
    assert train(iris, tmp_path / "run", *settings) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_learning_maps_needs_two_after_the_fraction(iris: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(iris, tmp_path / "run", "saliency.fraction=0.01", method="mentor") == 3
    assert "fewer than two rows in train have a map" in capsys.readouterr().err


def test_a_centred_map_is_symmetric_and_full_in_the_middle() -> None:
    for side in (16, 17, 224):
        drawn = centred_map(side)
        assert np.array_equal(drawn, drawn.T)
        assert np.array_equal(drawn, drawn[::-1])
        assert drawn.max() >= 251
        assert drawn[side // 2, 0] == pytest.approx(255 * np.exp(-2), abs=12)

"""Protocols: a type left out, folds without leakage, fewer labels; and that all who read a run's data agree on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lookhere.bench.finished import FinishedRun
from lookhere.bench.groups import groups
from lookhere.bench.run import check_maps_at_test
from lookhere.bench.store import find_runs
from lookhere.cli import main
from lookhere.data.cache import Dataset
from lookhere.data.manifest import DataOptions, Manifest, SaliencyOptions, read_manifest
from lookhere.data.protocol import ProtocolOptions, apply_protocol, assign_folds, draw_share
from lookhere.errors import DataError, UsageError
from lookhere.training.config import load_config

pytestmark = pytest.mark.filterwarnings("ignore:a blur with kernel")

Row = tuple[str, str, str, str]  # split, label, type, group


def make(rows: Sequence[Row], images: Sequence[str] | None = None, warnings: Sequence[str] = ()) -> Manifest:
    split, label, kind, group = map(list, zip(*rows, strict=True))
    classes = tuple(sorted(set(label), reverse=True))  # real, attack
    names = list(images or (f"{i:05}.png" for i in range(len(rows))))
    return Manifest(
        path=Path("m.csv"),
        root=Path(),
        classes=classes,
        positive=classes[-1],
        positive_reason="",
        image=names,
        image_file=names,
        label=np.array([classes.index(name) for name in label]),
        split=np.array(split),
        saliency=[""] * len(rows),
        type=kind,
        group=group,
        weight=np.ones(len(rows)),
        line=np.arange(len(rows)) + 2,
        warnings=list(warnings),
    )


def drawn(seed: int, count: int = 400, groups: int = 60, grouped: float = 0.8) -> Manifest:
    """A set of uneven types and groups, some rows without a group, in three splits."""
    draws = np.random.default_rng(seed)
    kinds = draws.choice(["", "", "", "print", "print", "lens", "display", "rare"], count)
    rows = [
        (
            str(draws.choice(["train", "train", "train", "val", "test"])),
            "attack" if kind else "real",
            str(kind),
            f"p{min(draws.geometric(2 / groups), groups)}" if draws.random() < grouped else "",
        )
        for kind in kinds
    ]
    return make(rows)


def shuffled(manifest: Manifest, seed: int = 0) -> tuple[Manifest, np.ndarray]:
    """The same rows in another order, and which they are."""
    order = np.random.default_rng(seed).permutation(len(manifest))
    lists = {
        name: [getattr(manifest, name)[i] for i in order]
        for name in ("image", "image_file", "saliency", "type", "group")
    }
    arrays = {name: getattr(manifest, name)[order] for name in ("label", "split", "weight", "line")}
    return replace(manifest, **lists, **arrays), order


def splits(manifest: Manifest, **options: Any) -> list[str]:
    return apply_protocol(manifest, ProtocolOptions(**options)).split.tolist()


OPEN: list[Row] = [
    *[("train", "real", "", ""), ("train", "attack", "print", ""), ("train", "attack", "lens", "")] * 2,
    *[("val", "real", "", ""), ("val", "attack", "print", ""), ("val", "attack", "lens", "")],
    *[("test", "real", "", ""), ("test", "attack", "print", ""), ("test", "attack", "lens", "")],
]


def test_the_manifests_splits_are_the_default() -> None:
    manifest = make(OPEN)
    assert apply_protocol(manifest, ProtocolOptions()) is manifest


def test_a_type_is_left_out_of_training() -> None:
    manifest = make(OPEN)
    before, after = manifest.split.tolist(), splits(manifest, kind="leave-type-out", type="lens")
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        assert new == ("test" if manifest.type[row] == "lens" else old)
    assert manifest.split.tolist() == before


def test_a_type_stays_in_the_test_split_that_it_is_in() -> None:
    extra: list[Row] = [("test_2", "real", "", ""), ("test_2", "attack", "lens", "")]
    after = splits(make(OPEN + extra), kind="leave-type-out", type="lens")
    assert after[-2:] == ["test_2", "test_2"]
    assert after[2] == after[5] == after[8] == "test"


def test_an_image_of_two_types_goes_as_one() -> None:
    rows = [*OPEN, ("train", "attack", "print", ""), ("train", "attack", "lens", "")]
    images = [f"{i}.png" for i in range(len(rows))]
    images[-2] = images[-1]
    assert splits(make(rows, images), kind="leave-type-out", type="lens")[-2:] == ["test", "test"]


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (OPEN, "lenz", r"protocol.type is 'lenz', not a type; expected one of 'lens', 'print'; did you mean 'lens'\?"),
        ([(s, n, "", g) for s, n, _, g in OPEN], "lens", "expected one of a column type, which no row has"),
        (
            [r for r in OPEN if r[2] != "print"],
            "lens",
            "0 rows of class 'attack' left in train by protocol.kind = leave",
        ),
        ([r for r in OPEN if r[0] != "val" or r[2] == "lens"], "lens", "no row left in val by"),
        ([r for r in OPEN if r[:2] != ("test", "real")], "lens", "test has no image of another class to tell type 'le"),
        (
            [(s.replace("test", "test_own"), *rest) for s, *rest in OPEN],
            "lens",
            r'add some, or rename a split \(data.splits = {test_own = "test"}\)',
        ),
    ],
)
def test_a_type_that_cannot_be_left_out(rows: list[Row], kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        splits(make(rows), kind="leave-type-out", type=kind)


def test_groups_that_come_to_be_on_two_sides_are_told() -> None:
    # One person is in train and val, as the manifest's reader has said; another in train with two types.
    rows: list[Row] = [(*row[:3], "") for row in OPEN]
    rows[0], rows[6] = ("train", "real", "", "p0"), ("val", "real", "", "p0")
    rows[1], rows[2] = ("train", "attack", "print", "p1"), ("train", "attack", "lens", "p1")
    told = "m.csv, column group: in both train and {}: 1 group, such as '{}'".format
    manifest = make(rows, warnings=["something else", told("val", "p0")])
    after = apply_protocol(manifest, ProtocolOptions(kind="leave-type-out", type="lens"))
    assert after.warnings == ["something else", told("test", "p1"), told("val", "p0")]
    folded = apply_protocol(make(rows * 3, warnings=[told("val", "p0")]), ProtocolOptions(kind="group-folds", folds=3))
    assert folded.warnings == []


@pytest.mark.parametrize("pool", ["train", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_folds_are_a_partition_without_leakage(seed: int, pool: str) -> None:
    manifest = drawn(seed)
    options = {"kind": "group-folds", "folds": 4, "pool": pool, "seed": seed}
    found = np.array([splits(manifest, fold=k, **options) for k in range(4)])
    pooled = np.ones(len(manifest), bool) if pool == "all" else manifest.split != "test"
    assert (found[:, ~pooled] == "unused").all()
    assert set(found[:, pooled].ravel()) == {"train", "val", "test"}
    assert ((found == "test").sum(axis=0) == pooled).all()  # each row is tested once
    assert np.array_equal(found == "val", np.roll(found == "test", -1, axis=0))
    for one in found:
        of: dict[str, set[str]] = {}
        for group, split in zip(np.array(manifest.group)[pooled], one[pooled], strict=True):
            of.setdefault(str(group), set()).add(str(split))
        assert all(len(where) == 1 for group, where in of.items() if group)
        assert len(of[""]) == 3  # those without a group go their own ways


def test_rows_of_one_image_stay_together_and_join_their_groups() -> None:
    manifest = drawn(1)
    images = list(manifest.image)
    images[7], images[8] = images[3], images[4]
    groups = list(manifest.group)
    groups[3], groups[7], groups[4], groups[8] = "p1", "p2", "", ""
    manifest = replace(manifest, image=images, image_file=images, group=groups)
    for k in range(5):
        after = splits(manifest, kind="group-folds", pool="all", fold=k)
        assert after[7] == after[3]
        assert after[8] == after[4]
        assert len({after[i] for i, group in enumerate(groups) if group in ("p1", "p2")}) == 1
        fewer = splits(manifest, label_fraction=0.5)
        mine = {fewer[i] for i, group in enumerate(groups) if group in ("p1", "p2") and manifest.split[i] == "train"}
        assert len(mine) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "group-folds", "fold": 2},
        {"kind": "group-folds", "pool": "all", "label_fraction": 0.3},
        {"label_fraction": 0.4},
        {"kind": "leave-type-out", "type": "lens", "label_fraction": 0.7},
    ],
)
def test_neither_order_nor_repetition_matters_but_the_seed_does(options: dict[str, Any]) -> None:
    manifest = drawn(2)
    after = splits(manifest, **options)
    assert after == splits(manifest, **options)
    other, order = shuffled(manifest)
    assert splits(other, **options) == [after[i] for i in order]
    assert len({tuple(splits(manifest, seed=seed, **options)) for seed in range(4)}) == 4


def unevenness(fold: np.ndarray, strata: np.ndarray, folds: int) -> np.ndarray:
    """How far, for each stratum, the fullest and the emptiest fold are from an equal share of it, in rows."""
    held = np.array([[np.count_nonzero(strata[fold == k] == s) for s in np.unique(strata)] for k in range(folds)])
    return np.abs(held - held.sum(0) / folds).max(axis=0)


@pytest.mark.parametrize("groups", [8, 30, 120, 500])
@pytest.mark.parametrize("folds", [3, 5, 8])
def test_folds_are_as_alike_as_those_of_scikit_learn(groups: int, folds: int) -> None:
    ours, theirs = [], []
    for seed in range(5):
        manifest = drawn(seed, groups=groups, grouped=1.0)
        kind = np.unique(manifest.type, return_inverse=True)[1]
        unit = np.unique(manifest.group, return_inverse=True)[1]
        if unit.max() + 1 < folds:
            continue
        fold = assign_folds(kind, manifest.label, unit, folds, np.random.default_rng(seed))
        other = np.empty(len(kind), int)
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(kind, kind, unit)
        for k, (_, test) in enumerate(parts):
            other[test] = k
        ours.append((unevenness(fold, kind, folds) / np.bincount(kind)).max())
        theirs.append((unevenness(other, kind, folds) / np.bincount(kind)).max())
    assert np.mean(ours) <= np.mean(theirs) * 1.02


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_without_groups_folds_differ_by_one_row_as_in_scikit_learn(folds: int) -> None:
    manifest = drawn(3, grouped=0)
    kind = np.unique(manifest.type, return_inverse=True)[1]
    fold = assign_folds(kind, manifest.label, np.arange(len(kind)), folds, np.random.default_rng(0))
    other = np.empty(len(kind), int)
    for k, (_, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=0).split(kind, kind)):
        other[test] = k
    for strata in (kind, manifest.label):
        assert (unevenness(fold, strata, folds) <= unevenness(other, kind, folds).max() + 1e-9).all()
        assert (unevenness(fold, strata, folds) < 1).all()
    assert np.ptp(np.bincount(fold)) <= 2


def test_label_fractions_are_nested_and_whole_groups() -> None:
    manifest = drawn(4, count=1000, groups=300, grouped=0.7)
    train = manifest.split == "train"
    groups = np.array(manifest.group)
    largest = max(np.count_nonzero(train & (groups == name)) for name in set(manifest.group) - {""})
    for seed in range(3):
        larger = train
        for fraction in (0.8, 0.5, 0.3):
            after = np.array(splits(manifest, label_fraction=fraction, seed=seed))
            used = after == "train"
            assert np.array_equal(after[~train], manifest.split[~train])
            assert set(after[train]) == {"train", "unused"}
            assert (used <= larger).all()
            larger = used
            assert abs(used.sum() - fraction * train.sum()) <= largest / 2
            assert all(len(set(after[train & (groups == name)])) <= 1 for name in set(manifest.group) - {""})


def test_a_share_is_in_proportion_even_of_many_rare_kinds() -> None:
    # One class of one kind; another of two large ones, and of forty that have two units each.
    kind = np.array([0] * 100 + [1] * 50 + [2] * 30 + [*range(3, 43)] * 2)
    label = (kind > 0).astype(np.int64)
    rare = {0.05: 0, 0.1: 0, 0.25: 0, 0.5: 0, 0.9: 0, 1.0: 0}
    for seed in range(20):
        before = np.zeros(260, bool)
        for share in rare:
            taken = draw_share(label, kind, np.ones(260, np.int64), share, np.random.default_rng(seed))
            assert taken.sum() == np.floor(share * 260 + 0.5)
            assert abs(taken[label == 0].sum() - share * 100) <= 1
            assert (before <= taken).all()
            before = taken
            rare[share] += taken[kind > 2].sum()
    for share, count in rare.items():
        assert count / 20 == pytest.approx(share * 80, abs=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "group-folds", "folds": 60}, r"13 groups to divide; protocol.folds = 60 needs as many"),
        (
            {"label_fraction": 0.01},
            r"row.? of class '\w+' left in train by protocol.label_fraction = 0.01; expected two",
        ),
    ],
)
def test_what_cannot_be_divided(options: dict[str, Any], message: str) -> None:
    manifest = drawn(5, count=80, groups=20, grouped=1.0)
    named = {group for group, split in zip(manifest.group, manifest.split, strict=True) if split != "test"}
    with pytest.raises(DataError, match=message.replace("13", str(len(named)))):
        splits(manifest, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["protocol.kind=leave-type-out"], 'protocol: kind = "leave-type-out" needs protocol.type'),
        (["protocol.type=lens"], 'protocol: type = "lens" is for protocol.kind = "leave-type-out"'),
        (["protocol.fold=1"], 'protocol: fold = 1 is for protocol.kind = "group-folds"'),
        (["protocol.kind=group-folds", "protocol.fold=5"], "protocol: fold = 5 of 5; expected 0 … 4"),
        (
            ["protocol.kind=leave-one-out"],
            "protocol.kind: expected fixed|leave-type-out|group-folds, got 'leave-one-out'",
        ),
        (["protocol.folds=2"], "protocol.folds: expected integer ≥ 3 and ≤ 100, got 2"),
        (["protocol.label_fraction=0"], "protocol.label_fraction: expected number > 0 and ≤ 1, got 0"),
        (["protocol.fraction=1"], "protocol.fraction: there is no such option"),
    ],
)
def test_options_that_cannot_be(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(settings=settings, flags={"data.manifest": "m.csv"})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def command(verb: list[str], *settings: str) -> int:
    return main([*verb, *(part for setting in settings for part in ("--set", setting))])


def train(iris: Path, out: Path, *settings: str) -> int:
    network = ["--backbone", "test_resnet", "--weights", "random", "--device", "cpu", "--out", str(out)]
    fixed = ["data.size=48", "training.epochs=1", "training.batch_size=8", "training.threads=1"]
    return command(["train", "--data", str(iris), "--method", "sage", *network], *fixed, *settings)


OUT = ["protocol.kind=leave-type-out", "protocol.type=paper printout"]


def test_an_open_set_by_the_command_line(iris: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert train(iris, out, *OUT) == 0
    result = json.loads((out / "result.json").read_text())
    assert "paper printout" not in result["types_seen"]
    rows = list(csv.DictReader(iris.open()))
    left_out = {row["image"] for row in rows if row["type"] == "paper printout"}
    tests = left_out | {row["image"] for row in rows if row["split"] == "test"}
    predictions = {row["id"]: row for row in csv.DictReader((out / "predictions.csv").open())}
    assert {name for name, row in predictions.items() if row["split"] == "test"} == tests
    assert {name for name, row in predictions.items() if row["type_seen"] == "no"} >= left_out
    kinds = {subset["name"]: subset for subset in result["evaluation"]["subsets"] if subset["split"] == "test"}
    assert kinds["type: paper printout"]["positives"] == len(left_out)
    assert kinds["unseen"]["positives"] > kinds["type: paper printout"]["positives"]
    assert result["data"]["counts"] == {"train": 18, "test": 16 + 8, "val": 6}

    # A new manifest is predicted as it is; what belongs to the run is read as the run read it.
    scores = FinishedRun.load(out, "cpu").predict(iris)
    given = read_manifest(DataOptions(manifest=iris), SaliencyOptions())
    assert dict(zip(scores.id, scores.split, strict=True)) == dict(zip(given.image, given.split, strict=True))
    reliance = FinishedRun.load(out, "cpu").measure_reliance(bootstrap=0)
    assert reliance["data"]["sha256"] == result["data"]["sha256"]
    capsys.readouterr()
    assert main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    assert "the data has changed" not in (tmp_path / "report.html").read_text()


def test_folds_by_the_command_line(iris: Path, tmp_path: Path) -> None:
    tested: list[str] = []
    hashes, shared = set(), set()
    for fold in range(3):
        out = tmp_path / f"fold{fold}"
        folds = ["protocol.kind=group-folds", "protocol.folds=3", "protocol.pool=all", f"protocol.fold={fold}"]
        assert train(iris, out, *folds) == 0
        tested += [row["id"] for row in csv.DictReader((out / "predictions.csv").open()) if row["split"] == "test"]
        result = json.loads((out / "result.json").read_text())
        assert sum(result["data"]["counts"].values()) == 48
        hashes.add(result["data"]["sha256"])
        shared.add((result["group"], result["data"]["whole_sha256"]))
    assert len(shared) == 1
    assert [group.folds for group in groups(find_runs([tmp_path]).runs)] == [(0, 1, 2)]
    assert sorted(tested) == sorted(row["image"] for row in csv.DictReader(iris.open()))
    assert len(hashes) == 3


def test_check_shows_what_a_protocol_does(iris: Path, capsys: Any) -> None:
    def shown(*settings: str) -> dict[tuple[str, str], int]:
        assert command(["check", str(iris), "--json"], *settings) == 0
        found = json.loads(capsys.readouterr().out)["counts"]
        return {(count["split"], count["type"]): count["images"] for count in found}

    assert {split for split, kind in shown(*OUT) if kind == "paper printout"} == {"test"}
    half = shown("protocol.label_fraction=0.5")
    # Groups of four images, of the types in the proportion of the whole.
    assert half["train", "bona fide"] == half["unused", "bona fide"] == 6
    assert sum(n for (split, _), n in half.items() if split == "train") == 12
    assert command(["check", str(iris)], "protocol.kind=leave-type-out", "protocol.type=print out") == 3
    assert "did you mean 'paper printout'?" in capsys.readouterr().err
    assert command(["check", str(iris)], "protocol.kind=group-folds", "protocol.folds=100") == 3
    assert "protocol.folds = 100 needs as many" in capsys.readouterr().err


def test_folds_need_no_val_in_the_manifest(iris: Path, tmp_path: Path, capsys: Any) -> None:
    bare = tmp_path / "m.csv"
    lines = iris.read_text().splitlines()
    bare.write_text("\n".join(line for line in lines if ",val," not in line) + "\n")
    folds = [f"data.root={iris.parent}", "protocol.kind=group-folds", "protocol.folds=3"]
    assert command(["check", str(bare)], folds[0]) == 3
    assert command(["check", str(bare)], *folds) == 0
    assert train(bare, tmp_path / "run", *folds) == 0
    counts = json.loads((tmp_path / "run" / "result.json").read_text())["data"]["counts"]
    assert counts == {"test": 8, "val": 8, "train": 8, "unused": 16}


@pytest.mark.parametrize("copied", ["pixel for pixel", "as JPEG"])
def test_a_copy_that_is_left_out_leaks_nothing(iris: Path, tmp_path: Path, capsys: Any, copied: str) -> None:
    rows = list(csv.DictReader(iris.open()))
    test = next(row for row in rows if row["split"] == "test")
    name = tmp_path / ("copy.png" if copied == "pixel for pixel" else "copy.jpg")
    with Image.open(iris.parent / test["image"]) as image:
        image.save(name, quality=70)
    copy = {**test, "image": str(name), "split": "train", "saliency": "", "group": "another"}
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, copy])

    def leaks(*settings: str) -> bool:
        outside = [f"data.root={iris.parent}", "data.allow_outside=true"]
        command(["check", str(tmp_path / "m.csv"), "--json"], *outside, *settings)
        found = json.loads(capsys.readouterr().out)["findings"]
        names = ("leakage", "near-duplicates across splits")
        return any(str(name) in example["images"] for f in found if f["name"] in names for example in f["examples"])

    assert leaks()
    seeds = [f"protocol.seed={seed}" for seed in range(12)]
    assert {leaks("protocol.label_fraction=0.5", seed) for seed in seeds} == {False, True}


def test_rows_that_are_left_out_need_no_map_at_test_time() -> None:
    manifest = make([("train", "real", "", ""), ("unused", "real", "", ""), ("test", "attack", "", "")])
    maps = np.tile(np.arange(2, dtype=np.uint8), (1, 2, 1))
    dataset = Dataset(manifest, np.zeros((3, 1, 2, 2), np.uint8), maps, np.array([-1, -1, 0]), np.zeros(1, bool), "")
    method: Any = SimpleNamespace(needs_maps_at_test=True, name="any", notes=("so",))
    check_maps_at_test(method, dataset)
    with pytest.raises(DataError, match=r"row 4, column saliency: no map"):
        check_maps_at_test(method, replace(dataset, map_index=np.array([-1, -1, -1])))

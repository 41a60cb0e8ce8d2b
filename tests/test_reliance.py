from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lookhere.bench.groups import groups
from lookhere.bench.reliance import RELIANCE, reliance_subsets, reliance_table
from lookhere.bench.report import write_report
from lookhere.bench.store import find_runs
from lookhere.cli import main
from lookhere.data.batches import Batches
from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.manifest import DataOptions, Manifest, SaliencyOptions, read_manifest
from lookhere.errors import DataError
from lookhere.evaluation.alterations import CONDITIONS, EFFECT, RelianceOptions, salient_region, shifted
from lookhere.evaluation.pairs import Pairs, pair_images
from lookhere.evaluation.reliance import measure_reliance, predict_altered

SIDE = 24
BOX = slice(9, 15)
EDGE = 3


def make_dataset(n: int = 60, *, group: int = 1, mapped=lambda label, i: True, seed: int = 0) -> Dataset:
    """Images whose class shows twice: in the level of a box, which the map marks, and at the upper and lower border."""
    rng = np.random.default_rng(seed)
    split = np.array(["train", "test", "test"] * (n // 3))
    label = np.arange(n) // 3 % 2
    images = rng.integers(80, 120, (n, 1, SIDE, SIDE)).astype(np.uint8)
    images[:, 0, BOX, BOX] += (label * 80).astype(np.uint8)[:, None, None]
    bright = np.where(label, 200, 20).astype(np.uint8)[:, None, None]
    images[:, 0, :EDGE] = bright
    images[:, 0, -EDGE:] = 220 - bright  # so that the class does not show in the background's mean
    saliency = np.zeros((1, SIDE, SIDE), np.uint8)
    saliency[0, BOX, BOX] = 255
    has_map = [mapped(int(label[i]), i) for i in range(n)]
    manifest = Manifest(
        path=Path("m.csv"),
        root=Path(),
        classes=("live", "attack"),
        positive="attack",
        positive_reason="",
        image=[f"{i:03}.png" for i in range(n)],
        image_file=[f"{i:03}.png" for i in range(n)],
        label=label.astype(np.int64),
        split=split,
        saliency=["map.png" if has else "" for has in has_map],
        type=[("live", ("lens", "print")[i % 2])[label[i]] for i in range(n)],
        group=[f"g{i // group}" if group > 1 else "" for i in range(n)],
        weight=np.ones(n),
        line=np.arange(n) + 2,
    )
    return Dataset(manifest, images, saliency, np.where(has_map, 0, -1).astype(np.int64), np.zeros(1, bool), "0" * 64)


def make_batches(size: int = 7):
    return lambda dataset, rows: Batches(dataset, rows, batch_size=size, mean=[0.0] * 3, std=[1.0] * 3)


def two(score: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(score), score], 1)


def reads_region(image: Tensor, saliency: Tensor) -> Tensor:
    return two(image[:, :, BOX, BOX].mean((1, 2, 3)))


def reads_background(image: Tensor, saliency: Tensor) -> Tensor:
    return two((image[:, :, :EDGE] - image[:, :, -EDGE:]).mean((1, 2, 3)))


def aurocs(predict, dataset: Dataset, options: RelianceOptions | None = None, **given) -> dict[str, float | None]:
    result = measure_reliance(predict, dataset, make_batches(), options, bootstrap=0, **given)
    found = next(subset for subset in result["subsets"] if subset["name"] == "all")
    return {name: metric["value"] for name, metric in found["metrics"].items()}


def test_a_network_that_reads_the_region_keeps_its_auroc_and_one_that_reads_the_background_loses_it() -> None:
    region, background = (aurocs(predict, make_dataset(120)) for predict in (reads_region, reads_background))
    for found in (region, background):
        assert found["whole"] == found["control"] == found["background_same"] == 1
    assert region["salient_only"] == region["background_opposite"] == 1
    assert region[EFFECT] == 0
    assert 0.2 < region["salient_noise"] < 0.8
    assert background["salient_noise"] == background["salient_blurred"] == 1
    assert background["background_opposite"] == 0
    assert background[EFFECT] == 1


def test_noise_has_the_statistics_of_what_is_around_it_and_tells_nothing_of_what_it_hides() -> None:
    dataset = make_dataset(6)
    seen: list[Tensor] = []

    def record(image: Tensor, saliency: Tensor) -> Tensor:
        seen.append(image.clone())
        return two(image.mean((1, 2, 3)))

    options = RelianceOptions(feather=0)
    pairs = pair_images(dataset, "test", options)
    predict_altered(record, pairs, make_batches(99), options)
    shown = dict(zip(("whole", "salient_only", "salient_blurred", "salient_noise"), seen, strict=False))
    darker = dataset.images.copy()
    darker[:, :, BOX, BOX] = 0
    seen.clear()
    predict_altered(record, replace(pairs, dataset=replace(pairs.dataset, images=darker)), make_batches(99), options)
    torch.testing.assert_close(seen[3], shown["salient_noise"], atol=1e-4, rtol=0)
    rest = np.ones((SIDE, SIDE), bool)
    rest[BOX, BOX] = False
    outside = shown["whole"][:, 0].numpy()[:, rest]
    inside = shown["salient_noise"][:, 0, BOX, BOX].reshape(len(outside), -1).numpy()
    z = (inside.mean(1) - outside.mean(1)) / (outside.std(1) / 6)
    assert (np.abs(z) < 4).all()
    assert inside.std(1) == pytest.approx(outside.std(1), rel=0.5)
    assert np.abs(outside - shown["salient_noise"][:, 0].numpy()[:, rest]).max() < 1e-6


def test_scores_agree_with_scikit_learn_on_composites_made_by_hand() -> None:
    dataset = make_dataset(60, group=4, seed=3)
    dataset.images[:] = np.random.default_rng(1).integers(0, 256, dataset.images.shape)
    weight = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def linear(image: Tensor, saliency: Tensor) -> Tensor:
        return two((image * weight).sum((1, 2, 3)))

    options = RelianceOptions(feather=0, shift=0.25)
    found = aurocs(linear, dataset, options)
    pairs = pair_images(dataset, "test", options)
    box = np.zeros((SIDE, SIDE))
    box[BOX, BOX] = 1
    images = np.repeat(dataset.images, 3, 1) / 255.0

    def auroc(altered: np.ndarray) -> float:
        return roc_auc_score(dataset.manifest.label[pairs.rows], (altered * weight.numpy()).sum((1, 2, 3)))

    mine = images[pairs.rows]
    assert found["whole"] == pytest.approx(auroc(mine), abs=1e-12)
    for name, rows in pairs.partners.items():
        assert found[name] == pytest.approx(auroc(mine * box + images[rows] * (1 - box)), abs=1e-12)
    moved = []
    for image, (down, right) in zip(mine, pairs.offset, strict=True):
        wide = np.pad(image, ((0, 0), (6, 6), (6, 6)), mode="reflect")
        back = wide[:, 6 - down : 6 - down + SIDE, 6 - right : 6 - right + SIDE]
        mark = np.pad(box, 6, mode="reflect")[6 - down : 6 - down + SIDE, 6 - right : 6 - right + SIDE]
        both = np.maximum(box, mark)
        moved.append(image * both + back * (1 - both))
    assert set(np.abs(pairs.offset).ravel()) == {6}
    assert found["control"] == pytest.approx(auroc(np.stack(moved)), abs=1e-12)
    assert found[EFFECT] == pytest.approx(found["background_same"] - found["background_opposite"])


def test_without_a_shift_the_control_is_the_image_itself() -> None:
    found = aurocs(reads_background, make_dataset(60, seed=5), RelianceOptions(shift=0))
    assert found["control"] == found["whole"]
    images = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(shifted(images, torch.zeros(2, 2, dtype=torch.int64)), images)


@pytest.mark.parametrize("side", [48, 224])
def test_a_region_holds_what_is_salient_in_either_image_whole_and_its_edge_is_soft_and_outside(side: int) -> None:
    options = RelianceOptions(feather=0.02)
    maps = torch.zeros(2, 1, side, side)
    maps[0, 0, side // 8 : side // 4, side // 8 : side // 4] = 0.3
    maps[1, 0, -side // 4 :, : side // 8] = 1
    maps[1, 0, 0, 0] = 0.24
    share = salient_region(maps[:1], options, maps[1:])[0, 0]
    salient = ((maps[0] > 0.25) | (maps[1] > 0.25))[0]
    assert share[salient].min() > 1 - 1e-6, "nothing that is salient in either image is mixed with the other"
    reach = int(np.ceil(2 * 0.02 * side))
    near = torch.from_numpy(binary_dilation(salient.numpy(), np.ones((3, 3)), 2 * reach))
    assert share[~near].max() == 0
    soft = (share > 1e-3) & (share < 1 - 1e-3)
    assert soft.sum() > 10
    steps = max(share.diff(dim=0).abs().max(), share.diff(dim=1).abs().max())
    assert steps < 0.6 / (0.02 * side), "the edge is a Gaussian's, not a step"
    assert set(salient_region(maps, RelianceOptions(feather=0)).unique().tolist()) == {0, 1}


def pairs_of(dataset: Dataset, options: RelianceOptions | None = None) -> Pairs:
    return pair_images(dataset, "test", options or RelianceOptions())


def test_partners_are_of_the_test_split_of_the_right_class_and_of_another_group() -> None:
    dataset = make_dataset(120, group=10)
    pairs = pairs_of(dataset)
    label, group = dataset.manifest.label, np.array(dataset.manifest.group)
    assert sorted(pairs.rows) == sorted(dataset.manifest.rows("test"))
    for name, rows in pairs.partners.items():
        assert set(dataset.manifest.split[rows]) == {"test"}
        assert (group[rows] != group[pairs.rows]).all()
        assert ((label[rows] == label[pairs.rows]) == (name == "background_same")).all()
        assert len(set(rows.tolist())) > 30
    single = pairs_of(make_dataset(120))
    assert all((rows != single.rows).all() for rows in single.partners.values())


def test_more_than_two_classes_are_opposite_to_each_other() -> None:
    dataset = make_dataset(180)
    manifest = replace(dataset.manifest, classes=("a", "b", "attack"), label=np.arange(180) // 3 % 3)
    pairs = pairs_of(replace(dataset, manifest=manifest))
    drawn = set(zip(manifest.label[pairs.rows], manifest.label[pairs.partners["background_opposite"]], strict=True))
    assert drawn == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_what_is_shown_depends_on_the_seed_and_not_on_batches_global_state_or_the_order_of_rows() -> None:
    dataset = make_dataset(60, group=3)

    def noisy(image: Tensor, saliency: Tensor) -> Tensor:
        return two((image * image.roll(1, 2)).mean((1, 2, 3)))

    def measure(size: int, seed: int = 0, data: Dataset = dataset):
        torch.manual_seed(size)
        np.random.seed(size)
        options = RelianceOptions(seed=seed)
        pairs = pairs_of(data, options)
        logits, share = predict_altered(noisy, pairs, make_batches(size), options)
        names = np.array(data.manifest.image)
        return {name: names[rows].tolist() for name, rows in pairs.partners.items()}, logits, share

    partners, logits, share = measure(7)
    order = np.random.default_rng(0).permutation(60)
    columns = ("image", "image_file", "saliency", "type", "group")
    manifest = replace(
        dataset.manifest,
        **{name: [getattr(dataset.manifest, name)[i] for i in order] for name in columns},
        **{name: getattr(dataset.manifest, name)[order] for name in ("label", "split", "weight", "line")},
    )
    mixed = replace(dataset, manifest=manifest, images=dataset.images[order], map_index=dataset.map_index[order])
    for again in (measure(1), measure(64), measure(7, data=mixed)):
        assert again[0] == partners
        for name in CONDITIONS:
            np.testing.assert_allclose(again[1][name], logits[name], rtol=0, atol=1e-6)
            assert again[2][name] == pytest.approx(share[name])
    other = measure(7, seed=1)
    assert other[0] != partners
    assert not np.allclose(other[1]["salient_noise"], logits["salient_noise"], atol=1e-4)
    assert share["salient_only"] + share["salient_blurred"] == pytest.approx(1)


def test_images_of_a_class_without_maps_are_lent_those_of_another_and_pasted_alike() -> None:
    dataset = make_dataset(120, mapped=lambda label, i: label == 1)
    pairs = pairs_of(dataset)
    assert len(pairs.rows) == 80
    assert pairs.dataset.guided[pairs.rows].all()
    assert (dataset.map_index[pairs.rows] >= 0).sum() == 40, "the data set itself is left as it is"
    counts = {(c["label"], c["type"]): (c["images"], c["own_map"], c["lent_map"]) for c in pairs.counts}
    assert counts == {("attack", "lens"): (20, 20, 0), ("attack", "print"): (20, 20, 0), ("live", "live"): (40, 0, 40)}

    def reads_traces(image: Tensor, saliency: Tensor) -> Tensor:
        """Sees how rough the box is, which blur and noise change."""
        return two(image[:, 0, BOX, BOX].diff(dim=1).abs().mean((1, 2)))

    alike = replace(dataset, images=np.random.default_rng(0).integers(0, 256, dataset.images.shape).astype(np.uint8))
    for name, value in aurocs(reads_traces, alike).items():
        assert abs(value) < 0.2 if name == EFFECT else 0.3 < value < 0.7, "pasting does not give the class away"
    assert aurocs(reads_region, dataset)["background_opposite"] == 1


def test_images_without_a_map_whose_class_has_maps_are_left_out_and_counted() -> None:
    dataset = make_dataset(120, mapped=lambda label, i: label == 0 or i % 2 == 0)
    result = measure_reliance(reads_region, dataset, make_batches(), types_seen=["lens"], bootstrap=50)
    counts = {c["type"]: (c["images"], c["own_map"], c["lent_map"]) for c in result["splits"]["test"]["images"]}
    assert counts == {"lens": (20, 20, 0), "print": (20, 0, 0), "live": (40, 40, 0)}
    assert {subset["name"]: subset["positives"] for subset in result["subsets"]} == {"all": 20, "seen": 20}


def test_what_is_undefined_is_null_with_a_reason_and_everything_is_json() -> None:
    alone = make_dataset(60, mapped=lambda label, i: label == 1)
    result = measure_reliance(reads_region, alone, make_batches(), RelianceOptions(unmapped="leave_out"), bootstrap=50)
    metrics = result["subsets"][0]["metrics"]
    assert set(metrics) == {*CONDITIONS, EFFECT}
    assert {(metric["value"], metric["why"]) for metric in metrics.values()} == {
        (None, "no negatives among the measured")
    }

    dataset = make_dataset(60)
    one = ["a" if label else name for label, name in zip(dataset.manifest.label, dataset.manifest.image, strict=True)]
    lone = replace(dataset, manifest=replace(dataset.manifest, group=one))
    metrics = measure_reliance(reads_region, lone, make_batches(), bootstrap=50)["subsets"][0]["metrics"]
    for name in ("background_same", EFFECT):
        assert metrics[name]["why"] == "attack: no image of the same class and another group to paste on"
        assert metrics[name]["value"] is None
    assert metrics["background_opposite"]["value"] == 1
    assert metrics["whole"] == {
        "value": 1, "low": None, "high": None, "why": "no interval: a class has only one image or group"
    }  # fmt: skip

    split = np.where(np.arange(60) % 3 == 1, "test_far", dataset.manifest.split)
    partly = make_dataset(60, mapped=lambda label, i: split[i] != "test_far")
    partly = replace(partly, manifest=replace(partly.manifest, split=split))
    result = measure_reliance(reads_region, partly, make_batches(), bootstrap=50)
    far, near = (next(s for s in result["subsets"] if s["split"] == name) for name in ("test_far", "test"))
    assert far["metrics"]["whole"]["why"] == "no image of test_far has a map"
    assert near["metrics"]["whole"]["value"] == 1
    json.dumps(result, allow_nan=False)
    with pytest.raises(DataError, match="no labelled image of a test split has a saliency map"):
        measure_reliance(reads_region, make_dataset(60, mapped=lambda label, i: split[i] == "train"), make_batches())


def test_an_image_that_cannot_be_paired_is_left_out_of_all_conditions() -> None:
    """All of one class are of one group, which one image of the other class shares."""
    dataset = make_dataset(60)
    rows = dataset.manifest.rows("test")
    label = dataset.manifest.label
    group = [f"{i}" for i in range(60)]
    for row in rows[label[rows] == 1]:
        group[row] = "shared" if row % 2 else "another"
    mapped = dataset.map_index.copy()
    mapped[[row for row in rows if label[row] == 1 and group[row] == "another"]] = -1
    odd = int(rows[label[rows] == 0][0])
    group[odd] = "shared"
    pairs = pairs_of(replace(dataset, map_index=mapped, manifest=replace(dataset.manifest, group=group)))
    assert "background_same" in pairs.why
    assert odd not in pairs.rows
    assert len(pairs.rows) == 20 + 10 - 1
    assert sum(count["own_map"] for count in pairs.counts) == 29


def test_differences_are_paired_over_the_resamples() -> None:
    def unsure(image: Tensor, saliency: Tensor) -> Tensor:
        return two(image[:, 0, 12, 12] + image[:, 0, 4, 4] / 3)

    dataset = make_dataset(300)
    dataset.images[:, 0, 12, 12] = np.random.default_rng(0).integers(0, 200, 300) + dataset.manifest.label * 50
    found = measure_reliance(unsure, dataset, make_batches(), bootstrap=400)["subsets"][0]["metrics"]
    for name in set(CONDITIONS) - {"whole"}:
        entry, difference = found[name], found[name]["difference"]
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert difference["value"] == pytest.approx(entry["value"] - found["whole"]["value"])
        assert difference["low"] <= difference["value"] <= difference["high"]
    same, whole = found["background_same"], found["whole"]
    width = same["difference"]["high"] - same["difference"]["low"]
    assert width < 0.7 * np.hypot(same["high"] - same["low"], whole["high"] - whole["low"])


@pytest.fixture(scope="module")
def run(iris: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reliance") / "runs" / "plain"
    small = ["--backbone", "test_resnet", "--weights", "random", "--device", "cpu", "--set", "data.size=48"]
    short = ["--set", "training.epochs=1", "--set", "training.batch_size=8"]
    arguments = ["train", "--data", str(iris), "--method", "cross-entropy", *small, *short, "--out", str(out)]
    assert main(arguments) == 0
    return out


def measure(run: Path, *options: str) -> int:
    return main(["evaluate", str(run), "--reliance", "--device", "cpu", "--bootstrap", "50", *options])


def test_a_run_is_measured_and_the_report_shows_it(run: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "runs" / "plain"
    shutil.copytree(run, copy)
    assert measure(copy) == 0
    shown = capsys.readouterr().out
    assert "background_opposite" in shown
    assert re.search(r"bona fide: \d+ with their own map", shown)
    first = (copy / "reliance.json").read_bytes()
    measured = json.loads(first)
    evaluation = json.loads((copy / "result.json").read_text())["evaluation"]
    for subset in measured["subsets"]:  # every test image of this set has a map
        same = next(s for s in evaluation["subsets"] if (s["split"], s["name"]) == (subset["split"], subset["name"]))
        assert subset["metrics"]["whole"]["value"] == pytest.approx(same["metrics"]["auroc"]["value"], abs=1e-9)
        assert (subset["positives"], subset["negatives"]) == (same["positives"], same["negatives"])
    assert measure(copy) == 0
    assert (copy / "reliance.json").read_bytes() == first
    capsys.readouterr()
    assert measure(copy, "--seed", "1", "--set", "reliance.threshold=0.5", "--json") == 0
    told = json.loads(capsys.readouterr().out)[str(copy)]
    assert (told["options"]["seed"], told["options"]["threshold"]) == (1, 0.5)
    assert told == json.loads((copy / "reliance.json").read_text())

    found = groups(find_runs([copy]).runs)
    assert reliance_subsets(found) == [("test", "unseen"), ("test", "seen"), ("test", "all")]
    table = reliance_table(found, "test", "unseen")
    unseen = next(subset for subset in told["subsets"] if subset["name"] == "unseen")
    cells = dict(zip(RELIANCE, table.rows[0].cells, strict=True))
    for name, cell in cells.items():
        assert cell.mean == pytest.approx(unseen["metrics"][name]["value"])
    page = write_report([copy], tmp_path / "r.html").read_text(encoding="utf-8")
    text = write_report([copy], tmp_path / "r.md").read_text(encoding="utf-8")
    for title in ("whole image", "background of another class"):
        assert title in page
        assert title in text
    assert page.index("Does the network rely on the salient region?") < page.index("Operating points</h2>")
    assert cells["background_opposite"].text in page
    assert write_report([run], tmp_path / "without.html").read_text(encoding="utf-8").count("rely on the salient") == 0


def test_a_run_that_was_not_measured_stands_beside_one_that_was(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "a")
    assert measure(tmp_path / "a") == 0
    shutil.copytree(run, tmp_path / "b")
    path = tmp_path / "b" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": "b", "group": "b" * 64}))
    table = reliance_table(groups(find_runs([tmp_path]).runs), "test", "all")
    assert {row.cells[0].mean is None for row in table.rows} == {True, False}
    assert "undefined (not measured)" in {row.cells[0].text for row in table.rows}
    assert any("lookhere evaluate RUN --reliance" in note for note in table.notes)


def test_other_data_is_measured_when_it_is_named(run: Path, iris: Path, tmp_path: Path, capsys) -> None:
    copy, new = tmp_path / "run", tmp_path / "new.csv"
    shutil.copytree(run, copy)
    lines = iris.read_text().splitlines()
    new.write_text("\n".join([lines[0], *(line.replace(",test,", ",test_new,") for line in lines if ",test," in line)]))
    assert measure(copy, "--data", str(new), "--set", f"data.root={iris.parent}") == 0
    table = reliance_table(groups(find_runs([copy]).runs), "test_new", "all")
    assert any("other data" in note for note in table.notes)
    page = write_report([copy], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "AUROC on altered images of test_new" in page


def test_what_cannot_be_measured_is_told(run: Path, iris: Path, tmp_path: Path, capsys) -> None:
    def refused(code: int, told: str, *arguments: str) -> None:
        assert main(["evaluate", *arguments]) == code
        assert re.search(told, capsys.readouterr().err)

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    refused(2, "reliance.blurr: .*did you mean 'reliance.blur'", str(copy), "--reliance", "--set", "reliance.blurr=1")
    refused(2, "given twice", str(copy), "--reliance", "--set", "reliance.seed=1", "--seed", "2")
    refused(2, "data.root=x: .*--data", str(copy), "--reliance", "--set", "data.root=x")
    refused(2, "--val: has no meaning with --reliance", str(copy), "--reliance", "--val", "x.csv")
    refused(2, "--data: is for --reliance", str(copy / "predictions.csv"), "--data", "x.csv")
    refused(2, "not a finished run", str(tmp_path), "--reliance")

    assert measure(copy) == 0
    capsys.readouterr()
    path = copy / "reliance.json"
    content = json.loads(path.read_text())
    for change, told in (
        ({"weights_sha256": "0" * 64}, "measured with other weights"),
        ({"format": 2}, "format 2"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(DataError, match=f"{told}.*measure again"):
            find_runs([copy])
    path.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        find_runs([copy])
    path.unlink()
    toml = copy / "run.toml"
    elsewhere = tmp_path / "set"
    shutil.copytree(iris.parent, elsewhere)
    text = toml.read_text()
    toml.write_text(text.replace(str(iris.parent), str(elsewhere)))
    assert measure(copy) == 0, "the same data at another place"
    path.unlink()
    manifest = elsewhere / "manifest.csv"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:-1]) + "\n")
    refused(3, "changed since the training", str(copy), "--reliance", "--device", "cpu")
    toml.write_text(text)
    with (copy / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    refused(2, "damaged: its SHA-256", str(copy), "--reliance", "--device", "cpu")
    assert not path.exists()


CHEST = Path(__file__).parents[2] / "shared" / "data" / "chest" / "manifest.csv"


@pytest.mark.skipif(not CHEST.is_file(), reason="the real image sets are not beside the repository")
def test_real_radiographs_pair_within_the_test_split_and_across_patients(tmp_path: Path) -> None:
    lines = CHEST.read_text().splitlines()
    small = tmp_path / "small.csv"
    small.write_text("\n".join([lines[0], *[line for line in lines if ",test," in line][::20]]) + "\n")
    data, saliency = DataOptions(manifest=small, root=CHEST.parent, size=32), SaliencyOptions()
    dataset = load_dataset(data, saliency, read_manifest(data, saliency, training=False))
    pairs = pairs_of(dataset)
    group = np.array(dataset.manifest.group)
    assert len(pairs.rows) == len(dataset) > 100
    assert not pairs.why
    for rows in pairs.partners.values():
        assert (group[rows] != group[pairs.rows]).all()
    _, share = predict_altered(reads_region, pairs, make_batches(32), RelianceOptions())
    assert 0.3 < share["salient_only"] < share["background_opposite"] < 0.9, "lungs fill a third to a half of the image"

"""Reports on cross-validation and on types left out: what is averaged, and what is paired."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t, ttest_rel
from sklearn.metrics import roc_auc_score

from lookhere.bench.exports import summary_csv, values_csv
from lookhere.bench.groups import Group, groups
from lookhere.bench.images import read_evidence
from lookhere.bench.published import published_tables
from lookhere.bench.report import write_report
from lookhere.bench.resamples import Resamples
from lookhere.bench.significance import significance_table
from lookhere.bench.store import find_runs
from lookhere.bench.tables import comparison
from lookhere.bench.values import baseline_of
from lookhere.data.cache import load_dataset
from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest
from lookhere.data.protocol import ProtocolOptions, apply_protocol
from lookhere.evaluation.comparison import draw_aurocs, hierarchical_interval, widest
from lookhere.evaluation.folds import Trial, corrected_interval, fold_means, paired_trials
from lookhere.evaluation.statistics import paired_difference
from test_report import KNOWN, NEW, ODD, make_data, make_run

SEEDS, FOLDS = (0, 1, 2), (0, 1, 2)
NAMES = {"plain": "cross-entropy", "sage": "sage"}


def make(folder: Path, data: DataOptions, name: str, seed: int, protocol: ProtocolOptions, skill: float) -> None:
    """Write the run of one training of a method by a protocol."""
    rows = apply_protocol(read_manifest(data, SaliencyOptions()), protocol)
    dataset = load_dataset(data, SaliencyOptions(), rows)
    whole = "the whole" if protocol.kind == "group-folds" else ""
    make_run(folder, data, dataset, method=NAMES[name], seed=seed, skill=skill, protocol=protocol, whole=whole)


def folds(fold: int, **others: int) -> ProtocolOptions:
    return ProtocolOptions(kind="group-folds", folds=3, fold=fold, pool="all", **others)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataOptions:
    return make_data(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def runs(data: DataOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, each cross-validated with three seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, fold in itertools.product(SEEDS, FOLDS):
        make(folder / f"plain-{seed}-{fold}", data, "plain", seed, folds(fold), 0.8)
        make(folder / f"sage-{seed}-{fold}", data, "sage", seed, folds(fold), 1.6)
    return folder


def read(*paths: Path) -> list[Group]:
    return groups(find_runs(paths).runs)


def draws(everyone: list[Group]) -> Resamples:
    return Resamples(everyone, {group.label: read_evidence(group).tested for group in everyone})


def read_test(runs: Path, name: str, seed: int, fold: int) -> pd.DataFrame:
    """Read the test images of a training, with the margin of the positive class."""
    table = pd.read_csv(runs / f"{name}-{seed}-{fold}" / "predictions.csv").query("split == 'test'")
    return table.assign(margin=table["logit_attack"] - table["logit_live"]).sort_values("id")


def aurocs(runs: Path, name: str) -> np.ndarray:
    """Return the AUROC ``seeds folds`` that scikit-learn gives."""
    tables = ((read_test(runs, name, seed, fold) for fold in FOLDS) for seed in SEEDS)
    return np.array([[roc_auc_score(one["label"] == "attack", one["margin"]) for one in row] for row in tables])


def test_folds_are_averaged_and_seeds_are_the_units(runs: Path) -> None:
    everyone = read(runs)
    assert [(g.label, g.seeds, g.folds, len(g.runs)) for g in everyone] == [
        ("cross-entropy", SEEDS, FOLDS, 9), ("sage", SEEDS, FOLDS, 9)
    ]  # fmt: skip
    table = comparison(everyone, kinds=["all"])
    plain, sage = (aurocs(runs, name) for name in NAMES)
    for row, values in zip(table.rows, (plain, sage), strict=True):
        assert row.trained == "seeds 0, 1, 2; folds 0, 1, 2"
        assert row.cells[0].values == tuple(f"{value:.3f}" for value in values.ravel())
        sd = np.std(values.mean(axis=1), ddof=1)
        assert row.cells[0].text == f"{values.mean():.3f} ± {sd:.3f}"
    paired = table.rows[1].cells[0].paired
    assert paired is not None
    assert paired.n == 3
    assert paired.mean == pytest.approx((sage - plain).mean())
    assert paired.values == pytest.approx((sage - plain).mean(axis=1))
    of_seeds = ttest_rel(sage.mean(axis=1), plain.mean(axis=1)).confidence_interval(0.95)
    # Nadeau and Bengio's formula; of three folds one trains, one selects and one tests.
    of_folds = (sage - plain).mean(axis=0)
    half = t.ppf(0.975, 2) * np.sqrt((1 / 3 + 1) * of_folds.var(ddof=1))
    assert paired.low == pytest.approx(min(of_seeds.low, of_folds.mean() - half))
    assert paired.high == pytest.approx(max(of_seeds.high, of_folds.mean() + half))
    # Every image is tested once, in one of the folds.
    images = pd.concat([read_test(runs, "sage", 0, fold) for fold in FOLDS])
    assert len(images) == images["id"].nunique() == 90
    positives = int((images["label"] == "attack").sum())
    assert table.columns[0].note == f"{positives} / {90 - positives}"
    notes = " ".join(table.notes)
    assert "Bengio & Grandvalet 2004" in notes
    assert (
        "(Student's t over seeds, widened to hold the corrected resampled t over folds (Nadeau & Bengio 2003))" in notes
    )


def test_images_are_drawn_in_each_fold_by_itself(runs: Path) -> None:
    """The interval over seeds and images is that of a bootstrap written out: images of each fold, then seeds."""
    everyone = read(runs)
    plain, sage = everyone
    found = draws(everyone).interval(sage, plain, "test", "all")
    rng = np.random.default_rng(7)
    tables = {(n, s, f): read_test(runs, n, s, f) for n in NAMES for s in SEEDS for f in FOLDS}
    drawn = []
    for _ in range(1000):
        by_fold = []
        for fold in FOLDS:
            positive = (tables["sage", 0, fold]["label"] == "attack").to_numpy()
            rows = [rng.choice(np.flatnonzero(side), int(side.sum())) for side in (positive, ~positive)]
            margins = {key: one["margin"].to_numpy() for key, one in tables.items() if key[2] == fold}
            auroc = {key: (m[rows[0]][:, None] > m[rows[1]]).mean() for key, m in margins.items()}
            by_fold.append([auroc["sage", seed, fold] - auroc["plain", seed, fold] for seed in SEEDS])
        drawn.append(np.mean(by_fold, axis=0)[rng.integers(3, size=3)].mean())
    assert found == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)
    table = comparison(everyone, kinds=["all"], resamples=draws(everyone))
    paired = table.rows[1].cells[0].paired
    assert paired is not None
    assert paired.low is not None
    assert paired.images
    assert found is not None
    assert paired.low <= found[0]


def test_tests_count_seeds(runs: Path) -> None:
    everyone = read(runs)
    table = significance_table(everyone, "test", "all", draws(everyone))
    assert table is not None
    cells = [cell.text for cell in table.rows[0].cells]
    assert cells[:3] == ["3", "0.25", "0.25"]
    assert cells[5].endswith("of 9 below 0.05"), "DeLong tests every pair of trainings"
    assert "paired by seed and fold, averaged over the folds" in table.notes[0]


def test_one_seed_gives_no_interval(runs: Path, tmp_path: Path) -> None:
    """Five folds would otherwise look like five independent trainings."""
    paths = [runs / f"{name}-0-{fold}" for name in NAMES for fold in FOLDS]
    everyone = read(*paths)
    cells = [row.cells[0] for row in comparison(everyone, kinds=["all"], resamples=draws(everyone)).rows]
    assert cells[0].text == f"{aurocs(runs, 'plain')[0].mean():.3f}"
    assert cells[1].difference.endswith("[no interval]")
    assert not cells[1].bold
    html = write_report(paths, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "from one seed, nobody can tell whether it is more than chance" in html
    assert "seed 0; folds 0, 1, 2" in html
    assert "With a single seed: value [" not in html


def test_a_seed_without_all_folds_waits(runs: Path) -> None:
    paths = [path for path in runs.iterdir() if path.name not in ("sage-1-2", "sage-2-0")]
    everyone = read(*paths)
    cell = comparison(everyone, kinds=["all"]).rows[1].cells[0]
    assert cell.text == f"{aurocs(runs, 'sage')[0].mean():.3f} (1 of 3 seeds; the others lack a fold)"
    assert len(cell.values) == 7
    assert cell.paired is not None
    assert cell.paired.n == 1
    lacking = read(*(runs / name for name in ("sage-0-0", "sage-1-1")))
    assert comparison(lacking, kinds=["all"]).rows[0].cells[0].text == "undefined (no seed has every fold)"


def test_fold_means_by_hand() -> None:
    values = {Trial(0, 0): 0.1, Trial(0, 1): 0.3, Trial(4, 0): 0.5, Trial(4, 1): 0.9, Trial(5, 1): 1.0}
    assert fold_means(values) == pytest.approx({0: 0.2, 4: 0.7})
    assert fold_means({Trial(3): 0.25}) == {3: 0.25}
    assert fold_means({}) == {}
    arrays = fold_means({Trial(1, f): np.array([f, 2.0 * f]) for f in (0, 1)})
    assert arrays[1] == pytest.approx([0.5, 1.0])
    # Only folds that both have are compared.
    paired = paired_trials(values, {Trial(0, 1): 0.1, Trial(4, 1): 0.4, Trial(4, 2): 0.0})
    assert (paired.n, paired.mean) == (2, pytest.approx(0.35))
    assert not paired.images


def test_corrected_interval_by_hand() -> None:
    """For values 1, 2, 3: s = 1, and Student's t with two degrees of freedom is 4.302653."""
    low, high = corrected_interval([1.0, 2.0, 3.0], 0.0) or (0, 0)
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))
    low, high = corrected_interval([1.0, 2.0, 3.0], 0.5) or (0, 0)
    assert high - 2 == pytest.approx(4.302653 * np.sqrt(1 / 3 + 0.5))
    assert corrected_interval([1.0], 0.5) is None


def test_a_fold_without_a_type_is_left_out_of_it(runs: Path, tmp_path: Path) -> None:
    for path in runs.iterdir():
        shutil.copytree(path, tmp_path / path.name)
        if path.name.endswith("-1"):
            result = json.loads((path / "result.json").read_text(encoding="utf-8"))
            subsets = result["evaluation"]["subsets"]
            result["evaluation"]["subsets"] = [s for s in subsets if s["name"] != f"type: {NEW}"]
            (tmp_path / path.name / "result.json").write_text(json.dumps(result), encoding="utf-8")
    table = comparison(read(tmp_path), kinds=["type"])
    column = [column.title for column in table.columns].index(NEW)
    cell = table.rows[1].cells[column]
    assert f"(6 of 9 trainings; undefined: this run has no type: {NEW} in test)" in cell.text
    assert cell.paired is not None
    assert cell.paired.n == 3


def test_every_form_of_the_report_tells_folds(runs: Path, tmp_path: Path) -> None:
    html = write_report([runs], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "seeds 0, 1, 2; folds 0, 1, 2" in html
    assert "mean over seeds and folds at each false positive rate" in html
    assert "Paired over 3 seeds, each averaged over its folds, the difference is" in html
    assert "0, 1, 2; counts and maps are of the first" in html
    assert html.count("<td>seed 1; fold 2</td>") == 2
    assert "seeds 0, 1, 2; folds 0, 1, 2" in write_report([runs], tmp_path / "r.md").read_text(encoding="utf-8")
    assert "seeds 0, 1, 2; folds 0, 1, 2:" in write_report([runs], tmp_path / "r.tex").read_text(encoding="utf-8")
    everyone = read(runs)
    (tmp_path / "v.csv").write_text(values_csv(everyone), encoding="utf-8")
    (tmp_path / "s.csv").write_text(summary_csv(everyone, draws(everyone)), encoding="utf-8")
    values = pd.read_csv(tmp_path / "v.csv").query("metric == 'auroc' and subset == 'all' and split == 'test'")
    assert list(zip(values["seed"], values["fold"], strict=True)) == 2 * list(itertools.product(SEEDS, FOLDS))
    summary = pd.read_csv(tmp_path / "s.csv").query("metric == 'auroc' and subset == 'all'")
    assert summary[["seeds", "folds"]].to_numpy().tolist() == [[3, 3], [3, 3]]
    assert list(summary["mean"]) == pytest.approx([aurocs(runs, name).mean() for name in NAMES])
    assert summary["pairs"].iloc[1] == 3


def test_errors_are_found_in_every_fold(runs: Path) -> None:
    sage = read(runs)[1]
    evidence = read_evidence(sage)
    tables = []
    for run in sage.runs:
        table = read_test(runs, "sage", *run.trial)
        tables.append(table.assign(above=table["margin"] - run.result["evaluation"]["threshold"]["value"]))
    above = pd.concat(tables)
    mean = above.groupby("id")["above"].mean()
    label = above.groupby("id")["label"].first()
    missed = mean[(label == "attack") & (mean < 0)].sort_values()
    assert [m.id for m in evidence.false_negatives] == list(missed.index[:6])
    assert [m.score for m in evidence.false_negatives] == pytest.approx(list(missed[:6]))


def test_other_divisions_and_other_data_are_not_paired(data: DataOptions, runs: Path, tmp_path: Path) -> None:
    for seed, fold in itertools.product(SEEDS[:2], FOLDS):
        make(tmp_path / f"{seed}-{fold}", data, "sage", seed, folds(fold, seed=1), 1.6)
    everyone = read(runs, tmp_path)
    assert [group.label for group in everyone] == [
        "cross-entropy (protocol.seed=0)", "sage (protocol.seed=0)", "sage (protocol.seed=1)"
    ]  # fmt: skip
    baselines = [baseline_of(group, everyone) for group in everyone]
    assert [one and one.label for one in baselines] == [None, "cross-entropy (protocol.seed=0)", None]
    # Folds whose whole is unknown, or another, stay apart.
    for fold in FOLDS:
        path = tmp_path / f"0-{fold}" / "result.json"
        result = json.loads(path.read_text(encoding="utf-8"))
        del result["data"]["whole_sha256"]
        path.write_text(json.dumps(result | {"group": f"{fold}" * 64}), encoding="utf-8")
    alone = read(*(tmp_path / f"0-{fold}" for fold in FOLDS))
    assert [(group.label, group.folds) for group in alone] == [(f"sage (fold={fold})", ()) for fold in FOLDS]


def test_published_numbers_stand_beside_means_over_folds(runs: Path) -> None:
    found = {run.folder.name: run for run in find_runs([runs]).runs}
    names = [name for name in found if name.startswith("sage")]
    entry = {"label": "sage", "runs": names, "mean": 0.8, "sd": 0.02}
    source = {"source": "a paper", "n": 5, "metric": "auroc", "kind": "all", "split": None, "numbers": [entry]}
    row = published_tables([source], found)[0].rows[0]
    values = aurocs(runs, "sage").mean(axis=1)
    assert row.cells[1].text == f"{values.mean():.3f} ± {np.std(values, ddof=1):.3f}"
    assert row.trained == "seeds 0, 1, 2; folds 0, 1, 2"


def test_types_left_out_stay_apart(data: DataOptions, tmp_path: Path) -> None:
    """Each is an open set of its own: other rows train, and its baseline left out the same type."""
    text = data.manifest.read_text(encoding="utf-8")
    moved = [
        line.replace(",attack,test,", ",attack,train,") if i % 2 and ODD.replace('"', '""') in line else line
        for i, line in enumerate(text.splitlines())
    ]
    manifest = data.manifest.with_name("odd.csv")
    manifest.write_text("\n".join(moved) + "\n", encoding="utf-8")
    own = data.model_copy(update={"manifest": manifest})
    for kind, seed, name in itertools.product((KNOWN, ODD), SEEDS[:2], NAMES):
        protocol = ProtocolOptions(kind="leave-type-out", type=kind)
        make(tmp_path / f"{name}-{kind == ODD}-{seed}", own, name, seed, protocol, 1.6)
    everyone = read(tmp_path)
    labels = [f"{method} (type={kind})" for method in ("cross-entropy", "sage") for kind in (KNOWN, ODD)]
    assert sorted(group.label for group in everyone) == sorted(labels)
    for group in everyone:
        baseline = baseline_of(group, everyone)
        if group.label.startswith("sage"):
            assert baseline is not None
            assert baseline.label == group.label.replace("sage", "cross-entropy")
    table = comparison(everyone, kinds=["type"])
    notes = {column.title: column.note.partition(" · ")[0] for column in table.columns}
    assert (notes[KNOWN], notes[ODD], notes[NEW]) == ("unseen by some", "unseen by some", "unseen")
    html = write_report([tmp_path], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "for the types that a group&#39;s own training images do not show, of" in html
    assert "that no training image shows" not in html


def cross_validate(
    rng: np.random.Generator, seeds: int, share: float, *, images: int = 150, folds: int = 5
) -> tuple[dict[Trial, float], dict[Trial, np.ndarray]]:
    """Return by trial the difference in AUROC of two equally good linear classifiers, and its draws over test images.

    Each sees features of its own, alike in distribution, and trains on the share of the training images that a seed
    draws. All is drawn anew: images, folds, seeds.
    """
    label = np.arange(images) % 2
    features = rng.normal(size=(2, images, 8)) + 0.25 * label[:, None]
    fold = rng.permutation(images) % folds
    differences, drawn = {}, {}
    for k in range(folds):
        trained = np.flatnonzero(~np.isin(fold, [k, (k + 1) % folds]))
        picks = [rng.choice(trained, int(share * len(trained)), replace=False) for _ in range(seeds)]
        scores = []
        for x, pick in itertools.product(np.pad(features, ((0, 0), (0, 0), (0, 1)), constant_values=1), picks):
            normal = x[pick].T @ x[pick] + np.eye(x.shape[1])
            scores.append(x[fold == k] @ np.linalg.solve(normal, x[pick].T @ (2.0 * label[pick] - 1)))
        positive = label[fold == k] == 1
        found = draw_aurocs(scores, positive, resamples=300, seed=k)
        assert found is not None
        for seed in range(seeds):
            a, b = scores[seed], scores[seeds + seed]
            differences[Trial(seed, k)] = float(roc_auc_score(positive, a) - roc_auc_score(positive, b))
            drawn[Trial(seed, k)] = found.auroc()[seed] - found.auroc()[seeds + seed]
    return differences, drawn


@pytest.mark.soak
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_coverage_of_a_cross_validated_difference_that_is_zero(seeds: int, share: float) -> None:
    """What docs/statistics.md says: trainings taken for independent, seeds, seeds and images, and the report's."""
    rng = np.random.default_rng([seeds, int(100 * share)])
    covered = np.zeros(4)
    for _ in range(300):
        differences, drawn = cross_validate(rng, seeds, share)
        every = dict(enumerate(differences.values()))
        means = fold_means(differences)
        of_seeds = paired_difference(means, dict.fromkeys(means, 0.0))
        of_images = hierarchical_interval(np.stack(list(fold_means(drawn).values())))
        report = paired_trials(differences, dict.fromkeys(differences, 0.0), ratio=1 / 3)
        intervals = (
            paired_difference(every, dict.fromkeys(every, 0.0)),
            of_seeds,
            widest(of_seeds, of_images),
            widest(report, of_images),
        )
        for i, one in enumerate(intervals):
            assert one.low is not None
            assert one.high is not None
            covered[i] += one.low <= 0 <= one.high
    print(f"coverage, share {share}, seeds {seeds}: {covered / 300}")
    assert covered[0] / 300 < 0.8
    assert covered[3] / 300 >= 0.92

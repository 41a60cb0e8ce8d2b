from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lookhere.bench import latex, tables
from lookhere.bench.groups import Group, groups
from lookhere.bench.images import read_evidence
from lookhere.bench.report import write_report
from lookhere.bench.resamples import Resamples
from lookhere.bench.significance import p_text, significance_table
from lookhere.bench.store import find_runs
from lookhere.bench.values import seed_values
from lookhere.cli import main
from lookhere.data.cache import load_dataset
from lookhere.data.manifest import SaliencyOptions
from lookhere.errors import UsageError
from lookhere.evaluation.comparison import hierarchical_difference
from lookhere.evaluation.delong import delong_test
from test_report import SEEDS, auroc, make_data, make_run

SPECIAL = "\\ { } $ & # % _ ^ ~ < > | \" ' ` [ ] * -- \n\t\x07é ß ñ Ł 眼 👁 − ± ≤ “quoted” x̃ ¿"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods with three seeds, and one with a single seed, on types whose names are markup."""
    folder = tmp_path_factory.mktemp("exports")
    data = make_data(folder / "data")
    dataset = load_dataset(data, SaliencyOptions())
    for seed in SEEDS:
        for name, method, skill in (("plain", "cross-entropy", 0.8), ("sage", "sage", 2.5), ("odd", "a_b% & {c}", 1.2)):
            make_run(folder / f"runs/{name}/{seed}", data, dataset, method=method, seed=seed, skill=skill)
    make_run(folder / "runs/once", data, dataset, method="mentor", seed=1, skill=1.0)
    return folder


@pytest.fixture(scope="module")
def everyone(runs: Path) -> list[Group]:
    return groups(find_runs([runs / "runs"]).runs)


@pytest.fixture(scope="module")
def resamples(everyone: list[Group]) -> Resamples:
    return Resamples(everyone, {group.label: read_evidence(group).tested for group in everyone})


def by_label(everyone: list[Group], label: str) -> Group:
    return next(group for group in everyone if group.label == label)


@pytest.mark.parametrize("subset", ["unseen", "seen", "all"])
def test_intervals_of_the_report_are_those_of_the_predictions(everyone, resamples, subset):
    sage, plain = by_label(everyone, "sage"), by_label(everyone, "cross-entropy")

    def scores(group):
        found = {}
        for run in group.runs:
            table = run.scores()
            table = table.select(table.split == "test")
            seen = {"unseen": "no", "seen": "yes"}.get(subset)
            found[run.seed] = table.select((table.label == 0) | (table.type_seen == seen) | (subset == "all"))
        positive = found[0].label == 1
        return {seed: table.margin("attack") for seed, table in found.items()}, positive

    (a, positive), (b, _) = scores(sage), scores(plain)
    low, high = resamples.interval(sage, plain, "test", subset)
    oracle = hierarchical_difference(a, b, positive)
    # Types share one draw of all images; their number varies a little where they are counted by themselves.
    assert (low, high) == pytest.approx((oracle.low, oracle.high), abs=0.02)
    table = tables.comparison(everyone, kinds=[subset], resamples=resamples)
    paired = next(row for row in table.rows if row.label == "sage").cells[0].paired
    t = stats.ttest_rel(*([auroc_of(group, seed, subset) for seed in SEEDS] for group in (sage, plain)))
    interval = t.confidence_interval(0.95)
    assert (paired.low, paired.high) == pytest.approx((min(low, interval.low), max(high, interval.high)))
    assert paired.images
    assert "widened to hold the bootstrap's over seeds and images" in " ".join(table.notes)
    each = resamples.delong(sage, plain, "test", subset)
    assert [trial.seed for trial in each] == list(SEEDS)
    assert each[1, 0] == delong_test(a[1], b[1], positive)


def auroc_of(group: Group, seed: int, subset: str) -> float:
    return seed_values(group, "test", subset, "auroc")[seed]


def test_groups_on_other_images_get_no_interval_over_images(runs, everyone, tmp_path):
    shutil.copytree(runs / "runs/sage", tmp_path / "sage")
    shutil.copytree(runs / "runs/plain", tmp_path / "plain")
    own = groups(find_runs([tmp_path]).runs)
    tested = {group.label: read_evidence(group).tested for group in own}
    changed = tested["sage"][2]["test"]
    changed.id[0] = "another.png"
    found = Resamples(own, tested)
    assert found.interval(*reversed(own), "test", "all") is None
    assert list(found.delong(*reversed(own), "test", "all")) == [(0, 0), (1, 0)]


def test_tests_table_shows_the_smallest_p(everyone, resamples):
    table = significance_table(everyone, "test", "unseen", resamples)
    assert [column.title for column in table.columns][1:] == list(table.definitions)
    rows = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert set(rows) == {group.label for group in everyone} - {"cross-entropy"}
    sage, plain = by_label(everyone, "sage"), by_label(everyone, "cross-entropy")
    difference = [auroc_of(sage, seed, "unseen") - auroc_of(plain, seed, "unseen") for seed in SEEDS]
    assert min(difference) > 0
    assert rows["sage"][:5] == ["3", "0.25", "0.75", "0.25 (Holm 0.75)", "0.25"]
    assert re.fullmatch(r"[0-3] of 3 below 0\.05", rows["sage"][5])
    assert rows["mentor"][:4] == ["1", "1", "1", "1 (Holm 1)"]
    assert significance_table([plain], "test", "unseen", resamples) is None


def test_p_values_are_readable():
    assert [p_text(p) for p in (1.0, 0.0625, 0.05, 0.00123, 0.0001, 1e-9)] == [
        "1", "0.0625", "0.05", "0.0012", "0.0001", "< 0.0001"
    ]  # fmt: skip


def brackets(text: str) -> int:
    """Return how many braces are open at the end, and fail if one closes that was not opened."""
    open_ = 0
    for c in re.sub(r"\\[\\{}]", "", text):
        open_ += {"{": 1, "}": -1}.get(c, 0)
        assert open_ >= 0
    return open_


def test_latex_escapes_every_special_character():
    escaped = latex.escape(SPECIAL)
    assert escaped.isascii()
    assert brackets(escaped) == 0
    bare = re.sub(r"\$[^$]*\$", "", re.sub(r"\\[a-zA-Z]+|\\[^a-zA-Z]", "", escaped))
    assert not set(bare) & set('$&#%_^~<>|"\\\n')
    assert latex.escape("a_b & 5 % of {x}") == r"a\_\allowbreak{}b \& 5 \% of \{x\}"
    assert latex.escape("a-b--c---d") == "a-b-{}-c-{}-{}-d"
    assert latex.escape("café 眼") == r"caf\'{e} {[}U+773C{]}"
    assert latex.escape("0.9 ± 0.1, −0.2 [1]") == r"0.9 $\pm$ 0.1, $-$0.2 {[}1{]}"


def test_latex_has_a_table_for_each_metric(runs):
    text = write_report([runs / "runs"], runs / "out.tex").read_text(encoding="utf-8")
    assert text.isascii()
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert labels[0] == "tab:test-auroc"
    assert {"tab:test-auroc-types", "tab:test-eer", "tab:test-apcer-at-val", "tab:test-tests"} <= set(labels)
    assert "tab:test-apcer-at-bpcer-1" not in labels, "10 bona fide images cannot show it"
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule") == len(labels)
    for table in text.split(r"\begin{table}")[1:]:
        lines = table.splitlines()
        columns = re.search(r"@\{\}(l(r*))@\{\}", table)[1]
        rows = [line for line in lines if line.endswith(r" \\") and not line.startswith("%")]
        assert len(rows) >= 3
        for line in rows:
            assert brackets(line) == 0
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        assert not [line for line in lines if not line.startswith("%") and re.search(r"(?<!\\)[%#]", line)]
    for seed in SEEDS:
        assert f"{auroc(runs, 'sage', seed, 'unseen'):.3f}" in text
    assert r"\textbf{" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(runs, everyone, tmp_path):
    write_report([runs / "runs"], tmp_path / "tables.tex")
    many = latex.document([(f"tab:{i}", tables.comparison(everyone)) for i in range(64)])
    (tmp_path / "many.tex").write_text(many, encoding="utf-8")
    source = ["\\documentclass{article}\\usepackage{booktabs}\\begin{document}", latex.escape(SPECIAL)]
    (tmp_path / "main.tex").write_text(
        "\n".join([*source, "\\input{tables}", "\\input{many}", "\\end{document}"]), encoding="utf-8"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_csv_holds_every_value_and_a_summary(runs, everyone, resamples, capsys):
    assert main(["report", str(runs / "runs"), "--out", str(runs / "out.csv")]) == 0
    assert "out.csv" in capsys.readouterr().out
    values = pd.read_csv(runs / "out.csv", keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    found = values.query("method == 'sage' and split == 'test' and subset == 'unseen' and metric == 'auroc'")
    assert list(found["seed"]) == list(SEEDS)
    assert list(found["value"]) == [auroc(runs, "sage", seed, "unseen") for seed in SEEDS]
    counted = sum(len(s["metrics"]) for g in everyone for run in g.runs for s in run.result["evaluation"]["subsets"])
    assert len(values) == counted
    lost = values.query("metric == 'apcer_at_bpcer_1'")
    assert lost["value"].isna().all()
    assert lost["why"].str.startswith("not resolvable").all()

    summary = pd.read_csv(runs / "out_summary.csv")
    row = summary.query("method == 'sage' and subset == 'unseen' and metric == 'auroc'").iloc[0]
    sage, plain = ([auroc(runs, name, seed, "unseen") for seed in SEEDS] for name in ("sage", "plain"))
    assert (row["mean"], row["sd"]) == pytest.approx((np.mean(sage), np.std(sage, ddof=1)))
    assert (row["baseline"], row["pairs"], row["interval"]) == ("cross-entropy", 3, "seeds and images")
    assert row["difference"] == pytest.approx(np.mean(sage) - np.mean(plain))
    shown = tables.comparison(everyone, kinds=["unseen"], resamples=resamples)
    paired = next(r for r in shown.rows if r.label == "sage").cells[0].paired
    assert (row["low"], row["high"]) == pytest.approx((paired.low, paired.high))
    assert (row["sign_flip_p"], row["holm_p"], row["smallest_p"]) == (0.25, 0.75, 0.25)
    eer = summary.query("method == 'sage' and subset == 'all' and metric == 'eer'").iloc[0]
    assert eer["interval"] == "seeds"
    baseline = summary.query("method == 'cross-entropy'")
    assert baseline["difference"].isna().all()
    assert baseline["mean"].notna().all()
    alone = summary.query("method == 'mentor' and metric == 'auroc'")
    assert alone["sd"].isna().all()
    assert alone["low"].isna().all()
    assert alone["interval"].isna().all()


def test_csv_keeps_names_that_are_markup(runs):
    write_report([runs / "runs"], runs / "out.csv")
    with (runs / "out.csv").open(encoding="utf-8", newline="") as file:
        names = {row["subset"] for row in csv.DictReader(file)}
    assert 'type: "><img src=x onerror=alert(1)>' in names


def test_markdown_has_the_tests(runs):
    text = write_report([runs / "runs"], runs / "out.md").read_text(encoding="utf-8")
    assert "**Tests of the difference in AUROC on test, unseen types**" in text
    assert "0.25 (Holm 0.75)" in text


def test_another_ending_is_refused(runs):
    with pytest.raises(UsageError, match=r"out\.pdf: expected a name that ends in \.html, .*\.csv"):
        write_report([runs / "runs"], runs / "out.pdf")

from __future__ import annotations

import base64
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm

from lookhere.bench import contrasts, curves, figures, tables
from lookhere.bench.groups import Group, groups
from lookhere.bench.images import read_evidence
from lookhere.bench.report import write_report
from lookhere.bench.resamples import Resamples
from lookhere.bench.store import find_runs
from lookhere.bench.table import excludes_zero
from lookhere.bench.values import seed_values
from lookhere.data.cache import load_dataset
from lookhere.data.manifest import SaliencyOptions
from test_report import make_data, make_run

LABELS = [f"a-method-with-a-long-name-{i} (batch_norm=per_view, tau=0.5, option_{i}=value)" for i in range(20)]


def read(root: Path) -> list[Group]:
    return groups(find_runs([root]).runs)


def text_of(uri: str) -> str:
    """Return the text of an SVG, a line per text element."""
    svg = base64.b64decode(uri.partition("base64,")[2]).decode()
    return "\n".join(re.findall(r"<text[^>]*>(.*?)</text>", svg, re.DOTALL))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cross-entropy and SAGE with five seeds, and SAGE with two more learning rates."""
    folder = tmp_path_factory.mktemp("figures")
    data = make_data(folder / "data")
    dataset = load_dataset(data, SaliencyOptions())
    for seed in range(5):
        make_run(folder / f"runs/plain/{seed}", data, dataset, method="cross-entropy", seed=seed, skill=0.5)
        for lr, skill in ((0.1, 2.0), (0.005, 1.0), (0.5, 2.5)):
            make_run(folder / f"runs/sage{lr}/{seed}", data, dataset, method="sage", seed=seed, skill=skill, lr=lr)
    return folder


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen methods with two seeds, some with long names."""
    folder = tmp_path_factory.mktemp("crowd")
    data = make_data(folder / "data")
    dataset = load_dataset(data, SaliencyOptions())
    for i, seed in itertools.product(range(18), (0, 1)):
        method = "cross-entropy" if not i else LABELS[i] if i % 3 else f"method-{i}"
        make_run(folder / f"runs/{i}-{seed}", data, dataset, method=method, seed=seed, skill=0.5 + 0.1 * i)
    return folder


def test_lines_differ_with_and_without_colour():
    styles = list(figures.styles_of([str(i) for i in range(40)]).values())
    grey = [(str(style["linestyle"]), style["marker"]) for style in styles]
    assert len(set(grey)) == 40
    coloured = [(style["color"], str(style["linestyle"])) for style in styles[:35]]
    assert len(set(coloured)) == 35
    # Few lines carry no markers: their dashes alone tell them apart.
    assert len({str(style["linestyle"]) for style in styles[: len(figures.DASHES)]}) == len(figures.DASHES)


@pytest.mark.parametrize("count", [2, 7, 20])
@pytest.mark.parametrize("long", [False, True])
def test_legend_fits_and_its_labels_do_not_overlap(count, long):
    labels = LABELS[:count] if long else [f"method-{i}" for i in range(count)]
    with figures.canvas(figures.WIDTH, 7) as figure:
        figure.subplots()
        figures.legend(figure, figures.styles_of(labels), marked=True)
        figure.canvas.draw()
        _assert_apart(figure, [text for legend in figure.legends for text in legend.get_texts()])


def _assert_apart(figure: Figure, texts) -> None:
    """No text leaves the figure or covers another."""
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert boxes
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects every figure before it is encoded, after checking that its labels lie apart."""
    seen: list[Figure] = []
    encode = figures.encode

    def check(figure: Figure) -> str:
        figure.canvas.draw()
        for part in (part for axis in figure.get_axes() for part in (axis.xaxis, axis.yaxis)):
            low, high = sorted(part.get_view_interval())
            _assert_apart(figure, [t.label1 for t in part.get_major_ticks() if low <= t.get_loc() <= high])
        parts = [figure, *figure.subfigs]
        legends = [text for part in parts for legend in part.legends for text in legend.get_texts()]
        if legends:
            _assert_apart(figure, legends)
        seen.append(figure)
        return encode(figure)

    for module in (figures, curves, contrasts):
        monkeypatch.setattr(module, "encode", check)
    return seen


def test_eighteen_groups_fit(crowd, drawn):
    path = write_report([crowd / "runs"], crowd / "report.html")
    html = path.read_text(encoding="utf-8")
    assert len(drawn) >= 6
    assert 'class="cards many"' in html
    roc = next(figure for figure in drawn if any("False positive" in a.get_xlabel() for a in figure.get_axes()))
    assert len(roc.subfigs) == 3
    # Grey diagonal, the baseline, and up to six others in each panel.
    assert [len(part.axes[0].lines) for part in roc.subfigs] == [8, 8, 7]
    Balanced().feed(html)


class Balanced(HTMLParser):
    """Fails where an element closes that is not the innermost open one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_forest_shows_the_table_and_fills_what_excludes_zero(runs, drawn):
    everyone = read(runs / "runs")
    resamples = Resamples(everyone, {group.label: read_evidence(group).tested for group in everyone})
    table = tables.comparison(everyone, kinds=["all"], resamples=resamples)
    text = text_of(contrasts.forest_figure(everyone, table))
    rows = [row for row in table.rows if row.baseline]
    assert all(row.label in text for row in rows)
    assert "AUROC less that of cross-entropy" in text
    (axis,) = drawn[0].get_axes()
    bars = [line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.8]
    paired = [row.cells[0].paired for row in rows]
    assert [tuple(bar.get_xdata()) for bar in bars] == [(one.low, one.high) for one in paired]
    signs = [line for line in axis.lines if line.get_markersize() == 7]
    assert [line.get_xdata()[0] for line in signs] == [one.mean for one in paired]
    assert [line.get_markerfacecolor() != "white" for line in signs] == [excludes_zero(one) for one in paired]
    assert contrasts.forest_figure(everyone, tables.comparison(everyone[:1], kinds=["all"])) is None


def test_curve_over_the_one_numeric_option_that_differs(runs, drawn):
    everyone = read(runs / "runs")
    (found,) = contrasts.ablations(everyone)
    assert (found.name, found.title) == ("training.lr", "sage: lr")
    assert [value for value, _ in found.lines[""]] == [0.005, 0.1, 0.5]
    assert found.baseline is not None
    assert found.baseline.label == "cross-entropy"
    text = text_of(contrasts.ablation_figure(found, "test", "all"))
    assert {"0.005", "0.1", "0.5", "sage: lr", "cross-entropy"} <= set(text.split("\n"))
    (axis,) = drawn[0].get_axes()
    assert axis.get_xscale() == "log"
    values = [list(seed_values(group, "test", "all", "auroc").values()) for _, group in found.lines[""]]
    (bars,) = axis.containers
    assert bars.lines[0].get_ydata() == pytest.approx([np.mean(v) for v in values])
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    assert [high - low for low, high in ends] == pytest.approx([2 * np.std(v, ddof=1) for v in values])
    # Two values are no curve.
    assert contrasts.ablations([g for g in everyone if g.label != "sage (lr=0.1)"]) == []


def test_mean_ranks_need_five_blocks(runs, drawn):
    everyone = read(runs / "runs")
    ranking = contrasts.rank_groups(everyone, "test", "all")
    assert ranking is not None
    assert ranking.labels == tuple(group.label for group in everyone)
    assert (ranking.ranks.blocks, ranking.datasets) == (5, 1)
    values = np.array([list(seed_values(group, "test", "all", "auroc").values()) for group in everyone])
    expected = [np.mean([1 + (column > v).sum() + ((column == v).sum() - 1) / 2
                         for v, column in zip(row, values.T, strict=True)]) for row in values]  # fmt: skip
    assert ranking.ranks.mean == pytest.approx(expected)
    text = text_of(contrasts.rank_figure(ranking)).split("\n")
    shown = [line for line in text if line in ranking.labels]
    assert shown == [ranking.labels[i] for i in np.argsort(expected, kind="stable")]
    four = groups([run for group in everyone for run in group.runs if run.seed < 4])
    assert contrasts.rank_groups(four, "test", "all") is None
    assert contrasts.rank_groups(everyone[:2], "test", "all") is None


def test_blocks_are_seeds_of_every_data_set(runs, tmp_path):
    everyone = read(runs / "runs")
    other = make_data(tmp_path / "other")
    other = other.model_copy(update={"size": 16})
    dataset = load_dataset(other, SaliencyOptions())
    for seed in range(2):
        make_run(tmp_path / f"c{seed}", other, dataset, method="cross-entropy", seed=seed, skill=0.5)
        for lr in (0.1, 0.005, 0.5):
            make_run(tmp_path / f"s{lr}-{seed}", other, dataset, method="sage", seed=seed, skill=1.0, lr=lr)
    both = groups([run for group in everyone for run in group.runs if run.seed < 3] + find_runs([tmp_path]).runs)
    assert len(both) == 8
    ranking = contrasts.rank_groups(both, "test", "all")
    assert ranking is not None
    assert set(ranking.labels) == {group.label for group in everyone}
    assert (ranking.ranks.blocks, ranking.datasets) == (5, 2)


def test_curves_are_read_off_and_start_where_a_negative_counts(runs, drawn):
    everyone = read(runs / "runs")
    found = {group.label: read_evidence(group).curves["test"] for group in everyone}
    scores = everyone[0].runs[0].scores()
    test = scores.select(scores.split == "test")
    margin = test.margin("attack")
    positives, negatives = margin[test.label == 1], np.sort(margin[test.label == 0])
    curve = found["cross-entropy"][0]["all"]
    for at, value in ((0.1, 1), (0.5, 5)):
        # Just below the k-th highest negative, k of 10 are taken for positive.
        highest = (positives >= np.nextafter(negatives[-value - 1], np.inf)).mean()
        lowest = (positives >= negatives[-value]).mean()
        assert lowest <= np.interp(at, curves.GRID, curve) <= highest
    assert curves.roc_figure(everyone, found)
    assert "BPCER in %: share of negatives taken for positive" in text_of(curves.det_figure(everyone, found, "test"))
    axis = drawn[-1].get_axes()[1]
    start = axis.lines[0].get_xdata()[0]
    assert norm.cdf(start) == pytest.approx(0.1, abs=0.01), "10 negatives cannot show a BPCER below 10 %"
    assert curves.roc_figure(everyone, {}) is None
    assert curves.det_figure(everyone, {group.label: [] for group in everyone}, "test") is None

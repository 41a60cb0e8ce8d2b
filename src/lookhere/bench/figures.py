"""The report's figures, as SVG in data URIs: small, sharp in print, and with no fonts or scripts from elsewhere."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from lookhere.bench.store import Group, Run
from lookhere.bench.tables import measure
from lookhere.evaluation.scores import Scores

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which people with any kind of colour vision tell apart."""
DASHES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lookhere",
    "text.parse_math": False,
}
GRID = np.linspace(0, 1, 201)


def line_styles(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Give every group a colour, and a dash pattern once the colours are used up, the same in all figures."""
    return {
        group.label: {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i // len(PALETTE) % len(DASHES)]}
        for i, group in enumerate(groups)
    }


def roc_curves(scores: Scores, positive: str, split: str) -> dict[str, np.ndarray]:
    """Return true positive rates at the false positive rates of ``GRID``, for ``unseen`` types and ``all``, if defined.

    The negatives are all of the split's, as everywhere in an evaluation.
    """
    curves = {}
    is_positive = scores.label == scores.classes.index(positive)
    margin = scores.margin(positive)
    for name, kept in (("unseen", ~is_positive | (scores.type_seen == "no")), ("all", True)):
        rows = kept & (scores.split == split) & (scores.label >= 0)
        if is_positive[rows].any() and not is_positive[rows].all():
            false, true, _ = roc_curve(is_positive[rows], margin[rows])
            curves[name] = np.interp(GRID, false, true)
    return curves


def roc_figure(groups: Sequence[Group], curves: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> str | None:
    """Draw ROC curves, averaged vertically over seeds, with their range; None if none is defined.

    Args:
        groups: the groups to draw.
        curves: by label, what ``roc_curves`` returns for each of the group's runs.
    """
    titles = {"unseen": "Types unseen in training", "all": "All types"}
    shown = [name for name in titles if any(name in run for several in curves.values() for run in several)]
    if not shown:
        return None
    styles = line_styles(groups)
    with _figure(4.2 * len(shown), 4.0) as figure:
        for axis, name in zip(_axes(figure, len(shown), len(shown)), shown, strict=True):
            axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
            for group in groups:
                several = np.array([run[name] for run in curves[group.label] if name in run])
                _band(axis, GRID, several, styles[group.label])
            axis.set(xlabel="False positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
            axis.set_title(titles[name])
        figure.axes[0].set_ylabel("True positive rate")
        _legend(figure, styles)
        return _svg(figure)


def dot_figure(groups: Sequence[Group], split: str, subset: str) -> str | None:
    """Draw the AUROC on a subset, one dot per seed and a bar at the mean, a line per group; None if undefined."""
    values = {
        group.label: [v for run in group.runs if (v := measure(run, split, subset, "auroc")["value"]) is not None]
        for group in groups
    }
    if not any(values.values()):
        return None
    styles = line_styles(groups)
    with _figure(8.4, 0.8 + 0.36 * len(groups)) as figure:
        axis = figure.subplots()
        for height, (label, several) in enumerate(values.items()):
            color = styles[label]["color"]
            axis.plot(several, [height] * len(several), "o", color=color, alpha=0.55, markersize=6, markeredgewidth=0)
            if several:
                axis.plot(np.mean(several), height, "|", color=color, markersize=17, markeredgewidth=2.4)
        axis.set_yticks(range(len(values)), list(values))
        axis.set(ylim=(len(values) - 0.5, -0.5), xlabel="AUROC (dot: one seed, bar: mean)")
        axis.grid(axis="y", visible=False)
        return _svg(figure)


def training_figure(groups: Sequence[Group], part: str) -> str | None:
    """Draw training curves, a panel per quantity and the mean over seeds with its range; None if there are none.

    Args:
        groups: the groups to draw.
        part: ``train`` for the terms of the loss, ``val`` for what was measured on the validation split.
    """
    names = list(
        dict.fromkeys(name for g in groups for run in g.runs for m in run.metrics for name in (m.get(part) or {}))
    )
    curves = {name: {group.label: _curves(group.runs, part, name) for group in groups} for name in names}
    curves = {name: by_label for name, by_label in curves.items() if any(map(len, by_label.values()))}
    if not curves:
        return None
    styles = line_styles(groups)
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    with _figure(2.8 * columns, 2.1 * rows + 0.4) as figure:
        for axis, (name, by_label) in zip(_axes(figure, len(curves), columns), curves.items(), strict=True):
            for label, several in by_label.items():
                _band(axis, np.arange(1, several.shape[1] + 1), several, styles[label])
            axis.set_title("AUROC" if name == "auroc" else name.replace("_", " ").capitalize())
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            axis.set_xlabel("Epoch")
        _legend(figure, styles)
        return _svg(figure)


def _curves(runs: Sequence[Run], part: str, name: str) -> np.ndarray:
    """Return ``runs epochs`` values with NaN where a run has none, or an empty array if no run has any."""
    several = [
        [float(v) if (v := (m.get(part) or {}).get(name)) is not None else np.nan for m in r.metrics] for r in runs
    ]
    length = max(map(len, several))
    padded = np.array([values + [np.nan] * (length - len(values)) for values in several])
    return padded if np.isfinite(padded).any() else np.empty((0, 0))


def _band(axis: Axes, x: np.ndarray, several: np.ndarray, style: Mapping[str, Any]) -> None:
    """Draw the mean of ``runs x`` values and their range; nothing where there are no runs."""
    if not len(several):
        return
    values = np.ma.masked_invalid(several)
    marker = "o" if len(x) == 1 else ""
    axis.plot(x, values.mean(axis=0), linewidth=1.6, marker=marker, markersize=4, **style)
    if len(values) > 1:
        axis.fill_between(x, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)


def _axes(figure: Figure, count: int, columns: int) -> list[Axes]:
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return axes[:count]


def _legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]]) -> None:
    handles = [Line2D([], [], linewidth=1.6, label=label, **style) for label, style in styles.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """Open a figure of so many inches without pyplot, which keeps figures and picks a display."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser finds one that has it
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _svg(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()

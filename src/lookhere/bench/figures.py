"""The report's figures, as SVG in data URIs: small, sharp in print, and with no fonts or scripts from elsewhere."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lookhere.bench.groups import Group
from lookhere.bench.store import Run
from lookhere.bench.values import measure, seed_values

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which people with any kind of colour vision tell apart."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (7, 1.5, 1.2, 1.5)), (0, (3, 1.2, 1, 1.2, 1, 1.2)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
"""With the dashes, 40 lines that differ without colour too: 7, 5 and 8 have no common factor."""
WIDTH = 8.4
"""Inches."""
CHARACTER = 0.068
"""Width of a character in inches, about."""
TITLES = {"unseen": "Types unseen in training", "all": "All types"}
CROWDED = 7
"""With more lines in a panel, their ranges over seeds would hide one another."""
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


def line_styles(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Give every group a colour, a dash pattern and a marker, the same in all figures."""
    return styles_of([group.label for group in groups])


def styles_of(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give every label a colour, a dash pattern and a marker."""
    return {
        label: {
            "color": PALETTE[i % len(PALETTE)],
            "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for i, label in enumerate(labels)
    }


def dot_figure(groups: Sequence[Group], split: str, subset: str) -> str | None:
    """Draw the AUROC on a subset, one dot per seed and a bar at the mean, a line per group; None if undefined."""
    values = {
        group.label: [v for run in group.runs if (v := measure(run, split, subset, "auroc")["value"]) is not None]
        for group in groups
    }
    if not any(values.values()):
        return None
    means = {group.label: list(seed_values(group, split, subset, "auroc").values()) for group in groups}
    styles = line_styles(groups)
    labels = [wrapped(label) for label in values]
    with canvas(WIDTH, 0.8 + sum(0.19 + 0.17 * (1 + label.count("\n")) for label in labels)) as figure:
        axis = figure.subplots()
        for height, (label, several) in enumerate(values.items()):
            color = styles[label]["color"]
            scatter_seeds(axis, several, height, color)
            if means[label]:
                axis.plot(np.mean(means[label]), height, "|", color=color, markersize=17, markeredgewidth=2.4)
        axis.set_yticks(range(len(values)), labels)
        axis.set(ylim=(len(values) - 0.5, -0.5), xlabel=f"AUROC (dot: one {one_of(groups)}, bar: mean)")
        axis.grid(axis="y", visible=False)
        return encode(figure)


def one_of(groups: Sequence[Group]) -> str:
    """Return what a single training of these groups is called."""
    return "training" if any(group.folds for group in groups) else "seed"


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
    with canvas(WIDTH, 2.1 * rows + legend_height(list(styles))) as figure:
        for axis, (name, by_label) in zip(_axes(figure, len(curves), columns), curves.items(), strict=True):
            lines = sum(map(bool, map(len, by_label.values())))
            for label, several in by_label.items():
                epochs = np.arange(1, several.shape[1] + 1) if len(several) else np.empty(0)
                band(axis, epochs, several, styles[label], marked=lines > len(DASHES), ranged=lines <= CROWDED)
            axis.set_title("AUROC" if name == "auroc" else name.replace("_", " ").capitalize())
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            axis.set_xlabel("Epoch")
        legend(figure, styles, marked=len(styles) > len(DASHES))
        return encode(figure)


def _curves(runs: Sequence[Run], part: str, name: str) -> np.ndarray:
    """Return ``runs epochs`` values with NaN where a run has none, or an empty array if no run has any."""
    several = [
        [float(v) if (v := (m.get(part) or {}).get(name)) is not None else np.nan for m in r.metrics] for r in runs
    ]
    length = max(map(len, several))
    padded = np.array([values + [np.nan] * (length - len(values)) for values in several])
    return padded if np.isfinite(padded).any() else np.empty((0, 0))


def band(
    axis: Axes,
    x: np.ndarray,
    several: np.ndarray,
    style: Mapping[str, Any],
    *,
    marked: bool = False,
    ranged: bool = True,
    scale: Callable[[Any], Any] = np.asarray,
) -> None:
    """Draw the mean of ``runs x`` values, and their range; nothing where there are no runs.

    Args:
        axis: where.
        x: positions.
        several: ``runs x`` values, NaN where there is none.
        style: of the line, from ``line_styles``.
        marked: set the marker along the line too, for panels with more lines than dash patterns.
        ranged: draw the range.
        scale: of the vertical axis, applied after averaging.
    """
    if not len(several):
        return
    values = np.ma.masked_invalid(several)
    line = dict(style)
    # Apart from those of the other lines, at even distances along this one.
    every = None if len(x) == 1 else (0.04 * (MARKERS.index(style["marker"]) + 1), 0.35)
    line["marker"] = style["marker"] if marked or len(x) == 1 else ""
    axis.plot(x, scale(values.mean(axis=0)), linewidth=1.6, markersize=4.5, markevery=every, **line)
    if len(values) > 1 and ranged:
        low, high = scale(values.min(axis=0)), scale(values.max(axis=0))
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def scatter_seeds(axis: Axes, values: Sequence[float], height: float, color: str) -> None:
    """Draw one translucent dot per seed."""
    axis.plot(values, [height] * len(values), "o", color=color, alpha=0.45, markersize=5.5, markeredgewidth=0)


def wrapped(label: str, width: int = 42) -> str:
    """Break a long label into lines."""
    return "\n".join(textwrap.wrap(label, width)) or label


def _axes(figure: Figure, count: int, columns: int) -> list[Axes]:
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return axes[:count]


def legend(figure: Figure | SubFigure, styles: Mapping[str, Mapping[str, Any]], *, marked: bool) -> None:
    """Name the lines above a figure, in as many columns as the longest label leaves room for."""
    labels, columns, _ = _legend_layout(list(styles))
    handles = [
        Line2D([], [], linewidth=1.6, markersize=4.5, label=label, **{**style, **({} if marked else {"marker": ""})})
        for label, style in zip(labels, styles.values(), strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3.2, borderaxespad=0.9)


def legend_height(labels: Sequence[str]) -> float:
    """Return how many inches ``legend`` takes."""
    return _legend_layout(labels)[2]


def _legend_layout(labels: Sequence[str]) -> tuple[list[str], int, float]:
    """Return labels in lines, the number of columns, and the height in inches."""
    broken = [wrapped(label, int((WIDTH - 0.8) / CHARACTER)) for label in labels]
    longest = max((len(line) for label in broken for line in label.split("\n")), default=0)
    columns = max(1, min(4, int(WIDTH / (longest * CHARACTER + 0.7))))
    rows = -(-len(labels) // columns)
    return broken, columns, 0.3 + 0.21 * rows * max((1 + label.count("\n") for label in broken), default=0)


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """Open a figure of so many inches without pyplot, which keeps figures and picks a display."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser finds one that has it
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def encode(figure: Figure) -> str:
    """Return a figure as the data URI of an SVG."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()

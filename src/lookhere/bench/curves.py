"""ROC and DET curves of test splits, averaged over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from scipy.stats import norm
from sklearn.metrics import roc_curve

from lookhere.bench.figures import TITLES, WIDTH, band, canvas, encode, legend, legend_height, line_styles
from lookhere.bench.groups import Group
from lookhere.evaluation.scores import Scores

GRID = np.unique(np.concatenate([np.linspace(0, 1, 201), np.geomspace(1e-3, 0.1, 41)]))
"""False positive rates at which curves are read off: even for a ROC curve, and finer where a DET curve looks."""
PER_PANEL = 7
"""Curves that can be told apart in one panel."""
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
HIGHEST = 0.6
"""Largest BPCER of a DET curve."""

Curves = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
"""By label, what `roc_curves` returns for each of a group's runs."""


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


def roc_figure(groups: Sequence[Group], curves: Curves) -> str | None:
    """Draw ROC curves, averaged vertically over seeds, with their range; None if none is defined.

    More groups than `PER_PANEL` take several rows of panels; the first group, which is the baseline, is in all of them.
    """

    def draw(axis: Axes, name: str, shown: Sequence[Group], styles: Mapping[str, Mapping[str, Any]]) -> None:
        axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
        for group in shown:
            several = np.array([run[name] for run in curves[group.label] if name in run])
            band(axis, GRID, several, styles[group.label], marked=len(shown) > 5)
        axis.set(xlabel="False positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")

    return _rows_of_panels(groups, curves, draw, "True positive rate")


def det_figure(groups: Sequence[Group], curves: Curves, split: str) -> str | None:
    """Draw DET curves, on axes where normally distributed scores give straight lines; None if none is defined.

    A curve starts at the lowest rate that the negatives can show, one of them, and rates of zero stand at half a
    positive.
    """

    def draw(axis: Axes, name: str, shown: Sequence[Group], styles: Mapping[str, Mapping[str, Any]]) -> None:
        for group in shown:
            several = np.array([run[name] for run in curves[group.label] if name in run])
            positives, negatives = _counts(group, split, name)
            if not len(several) or not positives or not negatives:
                continue
            resolved = (max(GRID[1], 1 / negatives) <= GRID) & (GRID <= HIGHEST)
            missed = np.clip(1 - several[:, resolved], 0.5 / positives, 1 - 0.5 / positives)
            band(axis, norm.ppf(GRID[resolved]), missed, styles[group.label], marked=len(shown) > 5, scale=norm.ppf)
        low, high = axis.get_ylim()
        axis.set(xlabel="BPCER in %: share of negatives taken for positive", ylim=(max(low, -3.2), min(high, 2.0)))
        for part in (axis.xaxis, axis.yaxis):
            part.set_major_locator(FixedLocator([float(norm.ppf(tick)) for tick in TICKS]))
            part.set_major_formatter(FixedFormatter([f"{100 * tick:g}" for tick in TICKS]))
            part.set_minor_locator(NullLocator())

    return _rows_of_panels(groups, curves, draw, "APCER in %, pooled: share of positives missed")


def _rows_of_panels(
    groups: Sequence[Group],
    curves: Curves,
    draw: Callable[[Axes, str, Sequence[Group], Mapping[str, Mapping[str, Any]]], None],
    ylabel: str,
) -> str | None:
    """Draw a panel per subset, in as many rows as the groups need."""
    names = [name for name in TITLES if any(name in run for several in curves.values() for run in several)]
    drawn = [group for group in groups if curves.get(group.label)]
    if not names or not drawn:
        return None
    styles = line_styles(groups)
    step = PER_PANEL - 1
    parts = [drawn]
    if len(drawn) > PER_PANEL:
        parts = [[drawn[0], *drawn[1 + i : 1 + i + step]] for i in range(0, len(drawn) - 1, step)]
    heights = [WIDTH / 2 + legend_height([group.label for group in shown]) for shown in parts]
    with canvas(WIDTH, sum(heights)) as figure:
        rows = np.atleast_1d(np.asarray(figure.subfigures(len(parts), 1, height_ratios=heights), dtype=object))
        for row, shown in zip(rows, parts, strict=True):
            axes = row.subplots(1, len(names), squeeze=False)[0]
            for axis, name in zip(axes, names, strict=True):
                draw(axis, name, shown, styles)
                axis.set_title(TITLES[name])
            axes[0].set_ylabel(ylabel)
            legend(row, {group.label: styles[group.label] for group in shown}, marked=len(shown) > 5)
        return encode(figure)


def _counts(group: Group, split: str, subset: str) -> tuple[int, int]:
    for found in group.result["evaluation"]["subsets"]:
        if (found["split"], found["name"]) == (split, subset):
            return found["positives"], found["negatives"]
    return 0, 0

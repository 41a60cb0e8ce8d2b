"""Figures that compare methods: differences from the baseline, mean ranks, and curves over one option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lookhere.bench.figures import (
    WIDTH,
    canvas,
    encode,
    legend,
    legend_height,
    line_styles,
    scatter_seeds,
    styles_of,
    wrapped,
)
from lookhere.bench.groups import BASELINE, Group, differing
from lookhere.bench.table import Table, excludes_zero
from lookhere.bench.values import seed_values
from lookhere.evaluation.ranks import Ranks, rank_methods
from lookhere.training.config import PLACES

FEWEST_BLOCKS = 5
"""Fewer blocks give mean ranks that say little."""
FEWEST_POINTS = 3
"""Two values of an option are a difference, not a curve."""
MOST_TICKS = 20
"""Values of an option that each have a mark on the axis."""


def forest_figure(groups: Sequence[Group], table: Table) -> str | None:
    """Draw each group's difference from its baseline with the interval of ``table``; None if there is none.

    A full sign means that the interval excludes zero, an empty one that it does not.

    Args:
        groups: all groups, which decide the colours; those of other rows are left out.
        table: a comparison in AUROC, whose first column is drawn.
    """
    styles = line_styles(groups)
    rows = [
        (row, paired, paired.mean)
        for row in table.rows
        if row.label in styles and (paired := row.cells[0].paired) is not None and paired.mean is not None
    ]
    if not rows:
        return None
    several = len({row.baseline for row, _, _ in rows}) > 1
    labels = [wrapped(f"{row.label} against {row.baseline}" if several else row.label) for row, _, _ in rows]
    with canvas(WIDTH, 0.9 + sum(0.2 + 0.17 * (1 + label.count("\n")) for label in labels)) as figure:
        axis = figure.subplots()
        axis.axvline(0, color="#555555", linewidth=1)
        for height, (row, paired, mean) in enumerate(rows):
            color, marker = styles[row.label]["color"], styles[row.label]["marker"]
            scatter_seeds(axis, paired.values, height, color)
            if paired.low is not None and paired.high is not None:
                axis.plot([paired.low, paired.high], [height] * 2, color=color, linewidth=1.8, marker="|", markersize=8)
            fill = color if excludes_zero(paired) else "white"
            axis.plot(mean, height, marker, color=color, markerfacecolor=fill, markersize=7, zorder=4)
        axis.set_yticks(range(len(rows)), labels)
        against = "its baseline" if several else rows[0][0].baseline
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"AUROC less that of {wrapped(against)}")
        axis.grid(axis="y", visible=False)
        return encode(figure)


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of configurations over blocks, which are seeds on one or several data sets."""

    labels: tuple[str, ...]
    ranks: Ranks
    datasets: int


def rank_groups(groups: Sequence[Group], split: str, subset: str) -> Ranking | None:
    """Rank configurations by their AUROC in each block, a data set and a seed, that all of them have.

    None for fewer than 3 configurations or `FEWEST_BLOCKS` blocks.
    """
    configurations: dict[tuple[str, ...], dict[tuple[str, int], float]] = {}
    labels: dict[tuple[str, ...], str] = {}
    for group in groups:
        own = {n: v for n, v in group.options.items() if n not in PLACES and n.partition(".")[0] != "data"}
        key = (group.result["backbone"], *(f"{name}={own[name]!r}" for name in sorted(own)))
        labels.setdefault(key, group.row)
        values = seed_values(group, split, subset, "auroc")
        configurations.setdefault(key, {}).update({(group.data, seed): value for seed, value in values.items()})
    blocks = sorted(set.intersection(*(set(found) for found in configurations.values())) if configurations else ())
    if len(configurations) < 3 or len(blocks) < FEWEST_BLOCKS:
        return None
    table = [[found[block] for block in blocks] for found in configurations.values()]
    shown = tuple(labels[key] for key in configurations)
    return Ranking(shown, rank_methods(table), len({data for data, _ in blocks}))


def rank_figure(ranking: Ranking) -> str:
    """Draw mean ranks with half of Nemenyi's critical difference to either side: overlap = not told apart."""
    ranks = ranking.ranks
    order = np.argsort(ranks.mean, kind="stable")
    labels = [wrapped(ranking.labels[i]) for i in order]
    half = ranks.critical_difference / 2
    with canvas(WIDTH, 0.9 + sum(0.2 + 0.17 * (1 + label.count("\n")) for label in labels)) as figure:
        axis = figure.subplots()
        best = ranks.mean[order[0]] + half
        axis.axvspan(min(ranks.mean) - half, best, color="#0072B2", alpha=0.08, linewidth=0)
        for height, i in enumerate(order):
            mean, apart = ranks.mean[i], ranks.mean[i] - half >= best
            axis.plot(
                [mean - half, mean + half], [height] * 2, color="#333333", linewidth=1.6, marker="|", markersize=8
            )
            axis.plot(mean, height, "o", color="#333333", markerfacecolor="#333333" if apart else "white", markersize=6)
        axis.set_yticks(range(len(labels)), labels)
        axis.set(ylim=(len(labels) - 0.5, -0.5), xlabel="Mean rank (1 = best), ± half the critical difference")
        axis.grid(axis="y", visible=False)
        return encode(figure)


@dataclass(frozen=True)
class Ablation:
    """Groups that differ in one numeric option, for each setting of the other options in which they differ."""

    name: str
    """The option, by its dotted name."""
    title: str
    lines: dict[str, list[tuple[float, Group]]]
    """By the other options, value and group, ascending in the value."""
    baseline: Group | None


def ablations(groups: Sequence[Group]) -> list[Ablation]:
    """Return every numeric option that takes at least `FEWEST_POINTS` values while all other options stay."""
    kinds: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        kinds.setdefault((group.result["method"], group.result["backbone"], group.data), []).append(group)
    found = []
    for (method, backbone, data), members in kinds.items():
        names = [name for name in differing(members) if name not in PLACES]
        same = [g for g in groups if (g.result["backbone"], g.data) == (backbone, data)]
        baseline = next((g for g in same if g.result["method"] == BASELINE and method != BASELINE), None)
        several = len({(b, d) for _, b, d in kinds}) > 1
        for name in names:
            lines: dict[str, list[tuple[float, Group]]] = {}
            for group in members:
                value = group.options.get(name)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    rest = ", ".join(f"{n.rsplit('.', 1)[-1]}={group.options.get(n)}" for n in names if n != name)
                    lines.setdefault(rest, []).append((float(value), group))
            lines = {
                rest: sorted(line, key=lambda one: one[0])
                for rest, line in lines.items()
                if len({value for value, _ in line}) >= FEWEST_POINTS
            }
            if lines:
                where = f" ({backbone}, {members[0].result['data'].get('name') or data[:8]})" if several else ""
                found.append(Ablation(name, f"{method}{where}: {name.rsplit('.', 1)[-1]}", lines, baseline))
    return found


def ablation_figure(ablation: Ablation, split: str, subset: str) -> str | None:
    """Draw the AUROC over an option, mean ± standard deviation over seeds, with every seed; None if undefined."""
    points = {
        rest: [(x, v) for x, g in line if (v := list(seed_values(g, split, subset, "auroc").values()))]
        for rest, line in ablation.lines.items()
    }
    if not any(points.values()):
        return None
    everywhere = sorted({x for line in points.values() for x, _ in line})
    styles = styles_of(list(points))
    with canvas(WIDTH, 3.4 + (legend_height(list(points)) if len(points) > 1 else 0)) as figure:
        axis = figure.subplots()
        baseline = ablation.baseline and list(seed_values(ablation.baseline, split, subset, "auroc").values())
        if baseline and ablation.baseline:
            axis.axhline(float(np.mean(baseline)), color="#777777", linewidth=1, linestyle=(0, (4, 2)))
            axis.annotate(
                ablation.baseline.label, (1, float(np.mean(baseline))), xycoords=("axes fraction", "data"),
                xytext=(-2, 2), textcoords="offset points", ha="right", fontsize=8, color="#555555",
            )  # fmt: skip
        for rest, line in points.items():
            x = [at for at, _ in line]
            mean = [float(np.mean(values)) for _, values in line]
            sd = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for _, values in line]
            axis.errorbar(x, mean, yerr=sd, capsize=3, linewidth=1.6, markersize=6, **styles[rest])
            for at, values in line:
                axis.plot(
                    [at] * len(values),
                    values,
                    ".",
                    color=styles[rest]["color"],
                    alpha=0.5,
                    markersize=8,
                    markeredgewidth=0,
                )
        if everywhere[0] > 0 and everywhere[-1] / everywhere[0] >= 20:
            axis.set_xscale("log")
        if len(everywhere) <= MOST_TICKS:
            axis.set_xticks(everywhere, [f"{x:g}" for x in everywhere], minor=False)
            axis.minorticks_off()
        axis.set(xlabel=ablation.title, ylabel="AUROC")
        if len(points) > 1:
            legend(figure, styles, marked=True)
        return encode(figure)

"""Published numbers beside those measured: the reference values of a plan, and Welch's test of the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from lookhere.bench.groups import Group
from lookhere.bench.store import Run
from lookhere.bench.table import Cell, Column, Row, Table, number
from lookhere.bench.values import TITLES, measure, seed_values, test_splits
from lookhere.evaluation.evaluate import DEFINITIONS
from lookhere.evaluation.statistics import summarise


@dataclass(frozen=True)
class Welch:
    """The difference of two means, ``a - b``, whose variances may differ."""

    difference: float
    low: float
    high: float
    p: float


def welch(a: tuple[float, float, int], b: tuple[float, float, int], level: float = 0.95) -> Welch | None:
    """Compare two groups by mean, standard deviation (n - 1) and size; None where neither varies or one has no spread.

    The interval is Student's with the degrees of freedom of Welch and Satterthwaite.
    """
    (mean, sd, n), (other, other_sd, m) = a, b
    if n < 2 or m < 2 or sd == other_sd == 0:
        return None
    mine, theirs = sd**2 / n, other_sd**2 / m
    freedom = (mine + theirs) ** 2 / (mine**2 / (n - 1) + theirs**2 / (m - 1))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(mine + theirs)
    p = float(stats.ttest_ind_from_stats(mean, sd, n, other, other_sd, m, equal_var=False).pvalue)
    return Welch(mean - other, mean - other - half, mean - other + half, p)


def published_tables(published: Sequence[Mapping[str, Any]], runs: Mapping[str, Run]) -> list[Table]:
    """Return a table for each source of published numbers, with those that have a finished run.

    Args:
        published: as in ``plan.json``.
        runs: finished runs by the name of their folder.
    """
    tables = []
    for source in published:
        rows = [row for entry in source["numbers"] if (row := _row(source, entry, runs)) is not None]
        metric = source["metric"]
        kind = "all images" if source["kind"] == "all" else f"{source['kind']} types"
        notes = [
            f"Mean ± standard deviation over trainings; published: as printed, of {source['n']} trainings. "
            "Difference: measured minus published, with its 95 % interval; p: Welch's t test, two-sided, for each row "
            "by itself. Other data, versions and machines are part of a difference."
        ]
        if waiting := len(source["numbers"]) - len(rows):
            notes.append(f"{waiting} of {len(source['numbers'])} numbers have no finished training yet.")
        if metric != "auroc":
            notes.append("In per cent.")
        columns = (Column("published"), Column("measured"), Column("difference"), Column("p"))
        title = f"{TITLES.get(metric, metric)}, {kind}: measured beside {source['source']}"
        definitions = {TITLES.get(metric, metric): DEFINITIONS[metric]}
        tables.append(Table(title, columns, tuple(rows), tuple(notes), definitions))
    return tables


def _row(source: Mapping[str, Any], entry: Mapping[str, Any], runs: Mapping[str, Run]) -> Row | None:
    mine = sorted((runs[name] for name in entry["runs"] if name in runs), key=lambda run: run.trial)
    if not mine:
        return None
    metric = source["metric"]
    group = Group("", tuple(mine))
    split = source["split"] or next(iter(test_splits([group])), "test")
    found = [measure(run, split, source["kind"], metric)["value"] for run in mine]
    values = list(seed_values(group, split, source["kind"], metric).values())
    cells = [Cell(f"{number(entry['mean'], metric)} ± {number(entry['sd'], metric)}", mean=entry["mean"])]
    if not values:
        return Row(entry["label"], group.seeds, "", (*cells, *[Cell("undefined")] * 3), group.folds)
    summary = summarise(values)
    sd = "" if summary.sd is None else f" ± {number(summary.sd, metric)}"
    listed = tuple("undefined" if value is None else number(value, metric) for value in found)
    cells.append(Cell(number(summary.mean, metric) + sd, listed, mean=summary.mean))
    difference = number(summary.mean - entry["mean"], metric, sign=True)
    tested = welch((summary.mean, summary.sd or 0.0, len(values)), (entry["mean"], entry["sd"], source["n"]))
    if tested is None:
        why = "one training" if len(values) < 2 else "no spread"
        cells += [Cell(difference, mean=summary.mean - entry["mean"]), Cell(f"– ({why})", mean=0.0)]
    else:
        ends = ", ".join(number(end, metric, sign=True) for end in (tested.low, tested.high))
        cells += [Cell(f"{difference} [{ends}]", mean=tested.difference), Cell(f"{tested.p:.2g}", mean=tested.p)]
    return Row(entry["label"], group.seeds, "", tuple(cells), group.folds)

"""A group's row of a table: means over seeds, and differences from a baseline.

A number is a mean ± standard deviation (n − 1) over seeds. Below it stands the difference from a baseline, paired by
seed, with its 95 % interval: Student's t over seeds, which an AUROC's bootstrap over seeds and test images can only
widen. A number is bold where that interval excludes zero, on either side. In a cross-validation trainings are paired by
seed and fold, and a seed's value is its mean over the folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lookhere.bench.groups import Group
from lookhere.bench.store import Run
from lookhere.bench.table import Cell, Row, difference_text, number
from lookhere.bench.values import TITLES, baseline_of, measure
from lookhere.evaluation.evaluate import DEFINITIONS
from lookhere.evaluation.folds import fold_means, paired_trials
from lookhere.evaluation.statistics import summarise

Wanted = tuple[Callable[[Run], dict[str, Any]], str]
"""How to find a cell's value in a run, and the metric that it is, which says how it is written."""
FOLDED = (
    "Mean ± standard deviation (n − 1) over seeds, a seed's value being its mean over the folds; the value of every "
    "training below, seed by seed.",
    "Folds share training images, so they are not independent, and no estimator of their mean's variance is unbiased "
    "(Bengio & Grandvalet 2004): differences are paired by seed and fold and averaged over the folds; tests count "
    "seeds, and a single seed gives no interval.",
)
"""How to read the numbers of a cross-validation."""


def evaluated(split: str, subset: str, metric: str) -> Wanted:
    """Want a metric of an evaluation on one subset of a test split."""
    return partial(measure, split=split, subset=subset, metric=metric), metric


def group_row(group: Group, groups: Sequence[Group], wanted: Sequence[Wanted]) -> Row:
    """Return a group's row with a cell for each value that is wanted, compared with the group's baseline among all."""
    baseline = baseline_of(group, groups)
    cells = tuple(_cell(group, baseline, *one) for one in wanted)
    return Row(group.label, group.seeds, baseline.label if baseline else "", cells, group.folds)


def _cell(group: Group, baseline: Group | None, find: Callable[[Run], dict[str, Any]], metric: str) -> Cell:
    found = [find(run) for run in group.runs]
    values = {run.trial: m["value"] for run, m in zip(group.runs, found, strict=True) if m["value"] is not None}
    listed = tuple("undefined" if m["value"] is None else number(m["value"], metric) for m in found)
    reasons = sorted({m.get("why", "no reason given") for m in found if m["value"] is None})
    if not values:
        return Cell(f"undefined ({'; '.join(reasons)})")
    if not (seeds := fold_means(values)):
        return Cell("undefined (no seed has every fold)", listed)
    summary = summarise(list(seeds.values()))
    text = number(summary.mean, metric)
    if summary.sd is not None:
        text += f" ± {number(summary.sd, metric)}"
    elif len(found) == 1 and found[0]["low"] is not None:
        text += f" [{number(found[0]['low'], metric)}, {number(found[0]['high'], metric)}]"
    if reasons:
        what = "trainings" if group.folds else "seeds"
        text += f" ({len(values)} of {len(found)} {what}; undefined: {'; '.join(reasons)})"
    if len(seeds) < len({seed for seed, _ in values}):
        text += f" ({len(seeds)} of {len(group.seeds)} seeds; the others lack a fold)"
    if baseline is None or metric.startswith("realised"):  # says what a threshold did; nothing to be better at
        return Cell(text, listed, mean=summary.mean)
    others = {run.trial: find(run)["value"] for run in baseline.runs}
    defined = {trial: value for trial, value in others.items() if value is not None}
    paired = paired_trials(values, defined, group.test_ratio)
    return Cell(text, listed, difference_text(paired, metric), summary.mean, paired)


def reading_notes(rows: Sequence[Row], metrics: Sequence[str], drawn: str | None = None) -> tuple[str, ...]:
    """Say how to read a table; ``drawn``: what the bootstrap of its differences draws, besides seeds."""
    notes = ["Mean ± standard deviation (n − 1) over seeds, every seed's value below."]
    if any(row.folds for row in rows):
        notes = [*FOLDED]
    if any(len(row.seeds) == 1 and len(row.folds) < 2 for row in rows):
        notes.append("With a single seed: value [95 % bootstrap interval over images].")
    held = ["the corrected resampled t over folds (Nadeau & Bengio 2003)"] if any(row.folds for row in rows) else []
    held += [f"the bootstrap's over seeds and {drawn}"] if drawn else []
    decides = "Student's t over seeds" + (f", widened to hold {' and '.join(held)}" if held else "")
    if baselines := sorted({row.baseline for row in rows} - {""}):
        notes.append(
            f"Second line: paired difference from {' or '.join(baselines)} and its 95 % interval ({decides})"
            + ("" if metrics == ["auroc"] else ", in percentage points")
            + "; bold where it excludes zero."
        )
    if any(metric != "auroc" for metric in metrics):
        notes.append("In per cent; “at val”: at the threshold fixed on the val split.")
    return tuple(notes)


def definitions(metrics: Sequence[str]) -> dict[str, str]:
    """Return what each metric is, by its title."""
    return {TITLES.get(metric, metric): DEFINITIONS[metric] for metric in metrics if metric in DEFINITIONS}

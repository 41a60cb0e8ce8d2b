"""Comma-separated values for a reader's own analysis: every number of every run, and what is said of groups of runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from lookhere.bench.groups import Group
from lookhere.bench.resamples import Resamples
from lookhere.bench.values import baseline_of, test_splits, trial_values
from lookhere.evaluation.comparison import holm, sign_flip_p, widest
from lookhere.evaluation.folds import fold_means, paired_trials
from lookhere.evaluation.statistics import smallest_rank_p, summarise

VALUES = (
    *("group", "method", "backbone", "data", "seed", "fold", "split", "kind", "subset", "positives", "negatives"),
    *("metric", "value", "low", "high", "why"),
)
"""Columns of `values_csv`; ``low`` and ``high`` are a run's own 95 % bootstrap interval over its test images, and
``fold`` is blank without cross-validation."""
SUMMARY = (
    *("group", "method", "backbone", "data", "split", "kind", "subset", "metric", "seeds", "folds", "mean", "sd"),
    *("baseline", "pairs", "difference", "low", "high", "interval", "sign_flip_p", "holm_p", "smallest_p"),
)
"""Columns of `summary_csv`; a seed's value is its mean over ``folds`` folds, blank without cross-validation, and
``holm_p`` is over all groups in the same metric and subset."""


def values_csv(groups: Sequence[Group]) -> str:
    """Return one line for each group, seed, test split or val, subset and metric; blank = undefined, see ``why``."""
    rows = []
    for group in groups:
        for run in group.runs:
            for subset in run.result["evaluation"]["subsets"]:
                for metric, found in subset["metrics"].items():
                    counts = (subset["positives"], subset["negatives"])
                    measured = (found["value"], found["low"], found["high"], found.get("why", ""))
                    where = (subset["split"], subset["kind"], subset["name"])
                    rows.append((*_about(group), run.seed, run.fold, *where, *counts, metric, *measured))
    return _csv(VALUES, rows)


def summary_csv(groups: Sequence[Group], resamples: Resamples) -> str:
    """Return one line for each group, test split, subset and metric: mean, and the difference from the baseline."""
    rows: list[tuple[Any, ...]] = []
    for split in test_splits(groups):
        subsets = {
            (s["kind"], s["name"]): tuple(s["metrics"])
            for group in groups
            for s in group.result["evaluation"]["subsets"]
            if s["split"] == split
        }
        for (kind, name), metrics in subsets.items():
            for metric in metrics:
                rows += _compared(groups, split, kind, name, metric, resamples)
    return _csv(SUMMARY, rows)


def _compared(
    groups: Sequence[Group], split: str, kind: str, subset: str, metric: str, resamples: Resamples
) -> list[tuple[Any, ...]]:
    """Return the lines of one metric on one subset."""
    lines: list[tuple[Any, ...]] = []
    compared = []
    for group in groups:
        values = trial_values(group, split, subset, metric)
        if not (seeds := fold_means(values)):
            continue
        summary = summarise(list(seeds.values()))
        folds = len({fold for _, fold in values}) if group.folds else None
        start = (*_about(group), split, kind, subset, metric, len(seeds), folds, summary.mean, summary.sd)
        baseline = baseline_of(group, groups)
        others = {} if baseline is None else trial_values(baseline, split, subset, metric)
        difference = paired_trials(values, others, group.test_ratio)
        if baseline is None or not difference.n or metric.startswith("realised"):
            lines.append((*start, *[None] * 9))
            continue
        drawn = resamples.interval(group, baseline, split, subset) if metric == "auroc" else None
        interval = widest(difference, drawn)
        how = "" if interval.low is None else "seeds and images" if interval.images else "seeds"
        told = (baseline.label, difference.n, difference.mean, interval.low, interval.high, how)
        compared.append((len(lines), sign_flip_p(difference.values), smallest_rank_p(difference.n)))
        lines.append((*start, *told))
    for (at, p, smallest), adjusted in zip(compared, holm([p for _, p, _ in compared]), strict=True):
        lines[at] = (*lines[at], p, adjusted, smallest)
    return lines


def _about(group: Group) -> tuple[str, str, str, str]:
    data = group.result["data"]
    return group.label, group.result["method"], group.result["backbone"], str(data.get("name") or data["sha256"][:12])


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()

"""What finished runs say: the values of their metrics, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookhere.bench.groups import BASELINE, Group, differing
from lookhere.bench.store import Run
from lookhere.evaluation.folds import Trial, fold_means

TITLES = {
    "auroc": "AUROC",
    "eer": "EER",
    "accuracy_at_val": "Accuracy at val",
    "apcer_at_bpcer_1": "APCER @ BPCER 1 %",
    "realised_bpcer_1": "realised BPCER (1 %)",
    "apcer_at_bpcer_5": "APCER @ BPCER 5 %",
    "realised_bpcer_5": "realised BPCER (5 %)",
    "apcer_at_val": "APCER at val",
    "bpcer_at_val": "BPCER at val",
    "detection_rate_at_val": "Detection rate at val",
}
KINDS = ("unseen", "seen", "all", "type")
"""Kinds of subset in the order of the columns; the open-set number comes first."""


def measure(run: Run, split: str, subset: str, metric: str) -> dict[str, Any]:
    """Return ``value``, ``low``, ``high`` and, where there is no value, ``why`` of one metric of a run."""
    for candidate in subsets_of(run, split):
        if candidate["name"] == subset and metric in candidate["metrics"]:
            return dict(candidate["metrics"][metric])
    return {"value": None, "low": None, "high": None, "why": f"this run has no {subset} in {split}"}


def seed_values(group: Group, split: str, subset: str, metric: str) -> dict[int, float]:
    """Return a metric of an evaluation by seed, the mean over folds, for the seeds where it is defined."""
    return fold_means(trial_values(group, split, subset, metric))


def trial_values(group: Group, split: str, subset: str, metric: str) -> dict[Trial, float]:
    """Return a metric of an evaluation by seed and fold, for the runs where it is defined."""
    found = {run.trial: measure(run, split, subset, metric)["value"] for run in group.runs}
    return {trial: value for trial, value in found.items() if value is not None}


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """Return what a group is compared with: cross-entropy, or else the first group, on the same data and backbone.

    Of several such groups it is the one whose other options are most like the group's own.
    """
    same = [
        other for other in groups if other.data == group.data and other.result["backbone"] == group.result["backbone"]
    ]
    found = [other for other in same if other.result["method"] == BASELINE] or same[:1]
    if group in found:
        return None
    return min(found, key=lambda other: len([n for n in differing([group, other]) if not n.startswith("method.")]))


def test_splits(groups: Sequence[Group]) -> list[str]:
    """Return the names of the test splits that were evaluated, in alphabetical order."""
    splits = {s["split"] for group in groups for s in group.result["evaluation"]["subsets"]}
    return sorted(split for split in splits if split.startswith("test"))


def subset_types(group: Group, split: str, subset: str) -> list[str]:
    """Return the types in a subset of a test split, in any fold; empty where there is no such subset."""
    found = [s for run in group.firsts for s in subsets_of(run, split) if s["name"] == subset]
    return list(dict.fromkeys(name for s in found for name in s["types"]))


def subset_title(subset: str) -> str:
    """Return a subset's name as titles give it."""
    return f"{subset} types" if subset in ("unseen", "seen") else subset


def subsets_of(run: Run, split: str) -> list[dict[str, Any]]:
    """Return the subsets of a test split that a run was evaluated on."""
    return [subset for subset in run.result["evaluation"]["subsets"] if subset["split"] == split]

"""What pairs of groups need from the predictions: intervals over seeds and test images, and DeLong's tests.

All runs on the same data are ranked on the same draws of its test images, once for all pairs and subsets. The folds of
a cross-validation have other test images, which are drawn by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lookhere.bench.groups import Group
from lookhere.errors import DataError
from lookhere.evaluation.comparison import Draws, Names, draw_aurocs, hierarchical_interval
from lookhere.evaluation.delong import DeLong, delong_test
from lookhere.evaluation.folds import Trial, fold_means
from lookhere.evaluation.scores import Scores

RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Tested:
    """One run's labelled images of a test split, in the order of their names."""

    id: Names
    is_positive: NDArray[np.bool_]
    kind: Names
    """Whether the type was seen in training, a tab, and the type."""
    group: Names
    margin: NDArray[np.float64]

    @classmethod
    def of(cls, scores: Scores, positive: str, split: str) -> Tested:
        """Take the images of ``split`` from a run's predictions."""
        part = scores.select((scores.split == split) & (scores.label >= 0))
        part = part.select(np.argsort(part.id, kind="stable"))
        kind = np.array([f"{seen}\t{name}" for seen, name in zip(part.type_seen, part.type, strict=True)], dtype=object)
        return cls(part.id, part.label == part.classes.index(positive), kind, part.group, part.margin(positive))

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of the positives."""
        return sorted(set(self.kind[self.is_positive]))

    def same_images(self, other: Tested) -> bool:
        """Are these the same images, with the same labels, types and groups?"""
        mine, others = ((t.id, t.is_positive, t.kind, t.group) for t in (self, other))
        return all(np.array_equal(a, b) for a, b in zip(mine, others, strict=True))


class Resamples:
    """Intervals and tests for pairs of groups.

    Args:
        groups: all groups of a report.
        tested: by label, for each run of the group, its test images by split.
    """

    def __init__(self, groups: Sequence[Group], tested: Mapping[str, Sequence[Mapping[str, Tested]]]) -> None:
        self.groups = groups
        self.tested = tested
        self._draws: dict[tuple[str, int, str], tuple[Draws | None, dict[tuple[str, int], int]]] = {}
        self._aurocs: dict[tuple[str, int, str, str], NDArray[np.float64]] = {}

    def interval(self, group: Group, baseline: Group, split: str, subset: str) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean difference in AUROC over seeds and images (`hierarchical_interval`).

        None for fewer than two seeds in common, other test images, or a class with one image or group.
        """
        common = _common(group, baseline)
        if len(set(group.seeds) & set(baseline.seeds)) < 2 or baseline.data != group.data:
            return None
        differences: dict[Trial, NDArray[np.float64]] = {}
        for trial in common:
            draws, rows = self._drawn(group.data, trial.fold, split)
            a, b = rows.get((group.label, trial.seed)), rows.get((baseline.label, trial.seed))
            if draws is None or a is None or b is None:
                return None
            if kinds := _kinds(draws.kinds, subset):  # not every fold has every type
                key = (group.data, trial.fold, split, subset)
                if key not in self._aurocs:
                    self._aurocs[key] = draws.auroc(kinds)
                differences[trial] = self._aurocs[key][a] - self._aurocs[key][b]
        seeds = list(fold_means(differences).values())
        return hierarchical_interval(np.stack(seeds), seed=SEED) if len(seeds) > 1 else None

    def delong(self, group: Group, baseline: Group, split: str, subset: str) -> dict[Trial, DeLong]:
        """Return DeLong's test of each pair of trainings, by the seed and fold that they share, where it is defined."""
        found = {}
        for trial in _common(group, baseline):
            a, b = (self.tested[one.label][_trials(one).index(trial)].get(split) for one in (group, baseline))
            if a is None or b is None or not a.same_images(b):
                continue
            rows = ~a.is_positive | np.isin(a.kind.astype(str), _kinds(a.kinds, subset))
            try:
                found[trial] = delong_test(a.margin[rows], b.margin[rows], a.is_positive[rows])
            except DataError:  # a class with fewer than two images
                continue
        return found

    def clustered(self, split: str) -> bool:
        """Are images drawn by group (subject, patient)?"""
        return any(
            bool((run[split].group != "").any()) for runs in self.tested.values() for run in runs if split in run
        )

    def _drawn(self, data: str, fold: int, split: str) -> tuple[Draws | None, dict[tuple[str, int], int]]:
        """Return the draws of all runs on a fold of some data, and the row of each label and seed in them."""
        if (data, fold, split) not in self._draws:
            first: Tested | None = None
            rows: dict[tuple[str, int], int] = {}
            margins: list[NDArray[np.float64]] = []
            for group in self.groups:
                for run, splits in zip(group.runs, self.tested[group.label], strict=True):
                    tested = splits.get(split)
                    if (group.data, run.trial.fold) != (data, fold) or tested is None:
                        continue
                    first = first or tested
                    if tested.same_images(first):
                        rows[group.label, run.seed] = len(margins)
                        margins.append(tested.margin)
            draws = None
            if first is not None:
                about = (first.is_positive, first.group, first.kind)
                draws = draw_aurocs(margins, *about, resamples=RESAMPLES, seed=SEED + fold)
            self._draws[data, fold, split] = (draws, rows)
        return self._draws[data, fold, split]


def _trials(group: Group) -> list[Trial]:
    return [run.trial for run in group.runs]


def _common(group: Group, baseline: Group) -> list[Trial]:
    """Return the seeds and folds that both have."""
    return sorted(set(_trials(group)) & set(_trials(baseline)))


def _kinds(kinds: Sequence[str], subset: str) -> list[str]:
    """Return the kinds of positives that an evaluation's subset holds."""
    if subset == "all":
        return list(kinds)
    if subset in ("seen", "unseen"):
        return [kind for kind in kinds if kind.startswith("yes\t" if subset == "seen" else "no\t")]
    return [kind for kind in kinds if kind.partition("\t")[2] == subset.removeprefix("type: ")]

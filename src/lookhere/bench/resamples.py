"""What pairs of groups need from the predictions: intervals over seeds and test images, and DeLong's test of each seed.

All runs on the same data are ranked on the same draws of its test images, once for all pairs and subsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lookhere.bench.store import Group
from lookhere.errors import DataError
from lookhere.evaluation.comparison import Draws, Names, draw_aurocs, hierarchical_interval
from lookhere.evaluation.delong import DeLong, delong_test
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
        self._draws: dict[tuple[str, str], tuple[Draws | None, dict[tuple[str, int], int]]] = {}
        self._aurocs: dict[tuple[str, str, str], NDArray[np.float64]] = {}

    def interval(self, group: Group, baseline: Group, split: str, subset: str) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean difference in AUROC over seeds and images (`hierarchical_interval`).

        None for fewer than two seeds in common, other test images, or a class with one image or group.
        """
        common = sorted(set(group.seeds) & set(baseline.seeds))
        data = group.runs[0].data_sha256
        if len(common) < 2 or baseline.runs[0].data_sha256 != data:
            return None
        draws, rows = self._drawn(data, split)
        pairs = [(rows.get((group.label, seed)), rows.get((baseline.label, seed))) for seed in common]
        found = [(a, b) for a, b in pairs if a is not None and b is not None]
        if draws is None or len(found) < len(common):
            return None
        key = (data, split, subset)
        if key not in self._aurocs:
            self._aurocs[key] = draws.auroc(_kinds(draws.kinds, subset))
        aurocs = self._aurocs[key]
        return hierarchical_interval(np.stack([aurocs[a] - aurocs[b] for a, b in found]), seed=SEED)

    def delong(self, group: Group, baseline: Group, split: str, subset: str) -> dict[int, DeLong]:
        """Return DeLong's test of the trainings of each seed in common, where it is defined."""
        found = {}
        for seed in sorted(set(group.seeds) & set(baseline.seeds)):
            a, b = (self.tested[one.label][one.seeds.index(seed)].get(split) for one in (group, baseline))
            if a is None or b is None or not a.same_images(b):
                continue
            rows = ~a.is_positive | np.isin(a.kind.astype(str), _kinds(a.kinds, subset))
            try:
                found[seed] = delong_test(a.margin[rows], b.margin[rows], a.is_positive[rows])
            except DataError:  # a class with fewer than two images
                continue
        return found

    def clustered(self, split: str) -> bool:
        """Are images drawn by group (subject, patient)?"""
        return any(
            bool((run[split].group != "").any()) for runs in self.tested.values() for run in runs if split in run
        )

    def _drawn(self, data: str, split: str) -> tuple[Draws | None, dict[tuple[str, int], int]]:
        """Return the draws of all runs on some data, and the row of each label and seed in them."""
        if (data, split) not in self._draws:
            first: Tested | None = None
            rows: dict[tuple[str, int], int] = {}
            margins: list[NDArray[np.float64]] = []
            for group in self.groups:
                for run, splits in zip(group.runs, self.tested[group.label], strict=True):
                    tested = splits.get(split)
                    if run.data_sha256 != data or tested is None:
                        continue
                    first = first or tested
                    if tested.same_images(first):
                        rows[group.label, run.seed] = len(margins)
                        margins.append(tested.margin)
            draws = None
            if first is not None:
                about = (first.is_positive, first.group, first.kind)
                draws = draw_aurocs(margins, *about, resamples=RESAMPLES, seed=SEED)
            self._draws[data, split] = (draws, rows)
        return self._draws[data, split]


def _kinds(kinds: Sequence[str], subset: str) -> list[str]:
    """Return the kinds of positives that an evaluation's subset holds."""
    if subset == "all":
        return list(kinds)
    if subset in ("seen", "unseen"):
        return [kind for kind in kinds if kind.startswith("yes\t" if subset == "seen" else "no\t")]
    return [kind for kind in kinds if kind.partition("\t")[2] == subset.removeprefix("type: ")]

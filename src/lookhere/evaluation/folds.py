"""Cross-validation: what its folds tell of the difference between two methods.

Folds share training images, so that their values are not independent: an interval that takes them for independent is
too narrow, and no estimator of the variance of their mean is unbiased (Bengio & Grandvalet 2004). So a seed's value is
its mean over the folds, seeds are the units of every test, and intervals hold that of Nadeau and Bengio too, which
counts what the folds share. A single seed gives no interval: its folds share the initial weights and their luck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lookhere.evaluation.comparison import widest
from lookhere.evaluation.statistics import Paired, paired_difference

Value = TypeVar("Value", float, NDArray[np.float64])


class Trial(NamedTuple):
    """What the trainings of two methods are paired by."""

    seed: int
    fold: int = 0
    """Of a cross-validation; 0 without one."""


def fold_means(values: Mapping[Trial, Value]) -> dict[int, Value]:
    """Return the means over folds, by seed.

    A seed that lacks a fold which another has is left out: folds differ in how hard they are.

    Args:
        values: numbers, or arrays of one shape.
    """
    folds = {trial.fold for trial in values}
    found: dict[int, list[Value]] = {}
    for trial in sorted(values):
        found.setdefault(trial.seed, []).append(values[trial])
    return {seed: sum(its[1:], its[0]) / len(folds) for seed, its in found.items() if len(its) == len(folds)}


def corrected_interval(values: Sequence[float], ratio: float, level: float = 0.95) -> tuple[float, float] | None:
    """Return the corrected resampled t interval of a mean over folds; None for fewer than two.

    Where independent values would give the mean the variance s² / k, it takes s² (1/k + ratio), for training sets that
    overlap (Nadeau & Bengio 2003, *Inference for the generalization error*, Machine Learning 52:239).

    Args:
        values: ``k``, of the folds.
        ratio: test images for each training image of a fold.
        level: coverage that the interval aims at, in (0, 1).
    """
    k = len(values)
    if k < 2:
        return None
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 / k + ratio)
    half = float(stats.t.ppf((1 + level) / 2, k - 1)) * spread
    mean = float(np.mean(values))
    return mean - half, mean + half


def paired_trials(a: Mapping[Trial, float], b: Mapping[Trial, float], ratio: float = 0.0) -> Paired:
    """Return the mean of ``a - b``, paired by seed and fold, averaged over folds, with an interval over seeds.

    It is Student's t, which holds `corrected_interval` too where there are folds. Seeds that lack one are left out.

    Args:
        a: value of each training.
        b: value of each training; a higher ``a`` gives a positive difference.
        ratio: as for `corrected_interval`; without cross-validation it has no meaning.
    """
    differences = {trial: a[trial] - b[trial] for trial in a.keys() & b.keys()}
    by_seed = fold_means(differences)
    by_fold: dict[int, list[float]] = {}
    for trial in sorted(differences):
        if trial.seed in by_seed:
            by_fold.setdefault(trial.fold, []).append(differences[trial])
    paired = paired_difference(by_seed, dict.fromkeys(by_seed, 0.0))
    return widest(paired, corrected_interval([float(np.mean(its)) for its in by_fold.values()], ratio))

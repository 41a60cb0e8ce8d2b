"""Uncertainty over images (bootstrap) and over seeds (mean, standard deviation, paired differences)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CELLS = 2**20
"""Weights drawn at a time: bounds the memory of a bootstrap, and keeps it in the processor's cache."""


@dataclass(frozen=True)
class Summary:
    """Values over seeds; ``sd`` is the sample standard deviation (n - 1), None for a single value."""

    values: tuple[float, ...]
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Paired:
    """Differences ``a - b`` over the seeds that both have; no interval, and a reason, for fewer than two."""

    n: int
    mean: float | None
    low: float | None
    high: float | None
    values: tuple[float, ...]
    why: str | None = None
    images: bool = False
    """Is the interval about other test images too, and not about other seeds alone?"""


def summarise(values: Sequence[float]) -> Summary:
    """Return mean and sample standard deviation; raise ``ValueError`` if there is no value."""
    if not values:
        raise ValueError("no values to summarise")
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(tuple(map(float, values)), float(np.mean(values)), sd)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Paired:
    """Return the mean of ``a - b`` over the seeds in both, with Student's t interval.

    Trainings of one seed share the order of the data and the initialisation, so that pairing removes their noise. With
    few seeds the interval is wide, and rightly so: it reaches 1.2 standard deviations of the differences to either side
    at 5 seeds, 2.5 at 3 and 9.0 at 2. A rank test is no way around this, see `smallest_rank_p`.

    Args:
        a: value for each seed.
        b: value for each seed; a higher ``a`` gives a positive difference.
        level: coverage of the interval, in (0, 1).
    """
    difference = np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], dtype=np.float64)
    n = len(difference)
    values = tuple(map(float, difference))
    if n < 2:
        why = f"an interval needs at least 2 seeds in common, there are {n}"
        return Paired(n, values[0] if values else None, None, None, values, why)
    mean = float(difference.mean())
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(difference))
    return Paired(n, mean, mean - half, mean + half, values)


def smallest_rank_p(n: int) -> float:
    """Return the smallest two-sided p that a signed-rank or sign-flip test can reach with ``n`` pairs: 2 / 2ⁿ.

    5 pairs cannot go below 0.0625, however clear the difference.
    """
    return min(1.0, 2.0 ** (1 - n))


class Resampler:
    """The bootstrap's weights: how often each row is drawn when its clusters are drawn with replacement.

    A cluster is a ``group`` (subject, patient), whose images are not independent; a row with a blank group is a cluster
    of its own. Clusters are drawn within strata: those that hold only positives, only negatives, or both. Without
    groups, this is the bootstrap over images stratified by class.

    Args:
        is_positive: ``n`` bool.
        group: ``n`` names, blank = none.
    """

    def __init__(self, is_positive: ArrayLike, group: NDArray[Any]) -> None:
        positive = np.asarray(is_positive, dtype=bool)
        single = group == ""
        self.cluster = pd.factorize(group)[0].astype(np.int64)
        self.cluster[single] = len(group) + np.arange(int(single.sum()))
        self.cluster = pd.factorize(self.cluster)[0].astype(np.int64)
        self.clusters = int(self.cluster.max(initial=-1)) + 1
        holds = [np.bincount(self.cluster, weights=rows, minlength=self.clusters) > 0 for rows in (positive, ~positive)]
        self.of_positives, self.of_negatives = (int(which.sum()) for which in holds)
        stratum = holds[0] + 2 * holds[1]
        self.strata = [np.flatnonzero(stratum == kind) for kind in np.unique(stratum)]

    def draw(self, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
        """Yield weights ``r n`` until there are ``resamples`` rows; memory is bounded, the seed alone decides them."""
        rng = np.random.default_rng(seed)
        at_once = max(1, CELLS // max(1, len(self.cluster)))
        for start in range(0, resamples, at_once):
            rows = min(at_once, resamples - start)
            drawn = np.empty((rows, self.clusters))
            for members in self.strata:
                size = len(members)
                picks = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
                drawn[:, members] = np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size)
            yield drawn[:, self.cluster]


def percentile_interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic's values over the resamples."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""Several methods ranked over several blocks: Friedman's test and Nemenyi's critical difference (Demšar 2006)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of ``k`` methods over ``blocks`` blocks; 1 is the best."""

    mean: tuple[float, ...]
    blocks: int
    p: float
    """Friedman's: do all methods rank alike? 1 if they tie in every block."""
    critical_difference: float
    """Nemenyi's: methods whose mean ranks lie closer than this are not told apart, at 5 % for all pairs together."""


def rank_methods(values: ArrayLike, level: float = 0.95) -> Ranks:
    """Rank methods within each block.

    Args:
        values: ``k b``, by method and block (such as a data set and a seed), ``k`` ≥ 3 and ``b`` ≥ 2; high = good.
        level: 1 minus the error rate of the critical difference, in (0, 1).
    """
    table = np.asarray(values, dtype=np.float64)
    k, blocks = table.shape
    ranks = stats.rankdata(-table, axis=0)
    constant = (table == table[:1]).all()
    p = 1.0 if constant else float(stats.friedmanchisquare(*table).pvalue)
    quantile = float(stats.studentized_range.ppf(level, k, np.inf)) / np.sqrt(2)
    critical = float(quantile * np.sqrt(k * (k + 1) / (6 * blocks)))
    return Ranks(tuple(map(float, ranks.mean(axis=1))), blocks, p, critical)

"""DeLong's variance of the AUROC, and his test of two scores on the same images.

DeLong, DeLong & Clarke-Pearson (1988), *Biometrics* 44:837; by midranks in O(n log n) as in Sun & Xu (2014), *IEEE
Signal Processing Letters* 21:1389. It is about one training each: another test set, but not another seed. Images that
belong together, such as those of one patient, make its intervals too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lookhere.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DeLong:
    """The difference between the AUROCs of two scores on the same images."""

    auroc: tuple[float, float]
    difference: float
    """The first minus the second."""
    se: float
    """Standard error of the difference."""
    z: float
    """The difference in standard errors; 0 where there is none, NaN where only the standard error is 0."""
    p: float
    """Two-sided, by the normal distribution; NaN where ``z`` is."""
    low: float
    high: float


def delong_covariance(scores: ArrayLike, is_positive: ArrayLike) -> tuple[Floats, Floats]:
    """Return AUROCs ``s`` and the covariance ``s s`` of their errors over test images.

    Args:
        scores: ``s n`` or ``n``, by score and image; high = positive, ties count half.
        is_positive: ``n`` bool.

    Raises:
        DataError: a class with fewer than two images, or a score that is not finite.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    positive = np.asarray(is_positive, dtype=bool)
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise DataError(f"{m} positives and {n} negatives: DeLong's variance needs at least two of each")
    if not np.isfinite(table).all():
        raise DataError("a score is not finite")
    # A midrank among all, less the midrank in its own class, counts the other class below an image, ties half.
    ranks = stats.rankdata(table, axis=1)
    of_positives = (ranks[:, positive] - stats.rankdata(table[:, positive], axis=1)) / n
    of_negatives = 1 - (ranks[:, ~positive] - stats.rankdata(table[:, ~positive], axis=1)) / m
    covariance = np.atleast_2d(np.cov(of_positives)) / m + np.atleast_2d(np.cov(of_negatives)) / n
    return of_positives.mean(axis=1), covariance


def delong_variance(score: ArrayLike, is_positive: ArrayLike) -> tuple[float, float]:
    """Return the AUROC of ``n`` scores and the variance of its error over test images (see `delong_covariance`)."""
    auroc, covariance = delong_covariance(score, is_positive)
    return float(auroc[0]), float(covariance[0, 0])


def delong_test(a: ArrayLike, b: ArrayLike, is_positive: ArrayLike, level: float = 0.95) -> DeLong:
    """Compare two scores of the same images, such as those of two networks (see `delong_covariance`).

    Args:
        a: ``n`` scores, high = positive.
        b: ``n`` scores of the same images in the same order.
        is_positive: ``n`` bool.
        level: coverage of the interval of the difference, in (0, 1).
    """
    auroc, covariance = delong_covariance(np.stack([np.asarray(a), np.asarray(b)]), is_positive)
    difference = float(auroc[0] - auroc[1])
    # Two rankings alike leave rounding errors, of either sign, of the covariance.
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    se = float(np.sqrt(variance)) if variance > 1e-15 else 0.0
    z = float("nan")
    if abs(difference) < 1e-12:
        z = 0.0
    elif se:
        z = difference / se
    half = float(stats.norm.ppf((1 + level) / 2)) * se
    p = float(2 * stats.norm.sf(abs(z)))
    return DeLong((float(auroc[0]), float(auroc[1])), difference, se, z, p, difference - half, difference + half)

"""Detection metrics under many weightings of the same rows at once, as a bootstrap needs them.

Convention: a high score means positive (attack presentation, disease), and a row is decided positive **iff its score is
at or above the threshold**. Positives are what ISO/IEC 30107-3 calls attack presentations, of one or several species;
negatives are its bona fide presentations.

A weight says how often a row counts: weighting rows by integers gives the same as repeating them, for every metric. All
counts are kept as exact integers in float64. What a weighting leaves undefined (no rows of a class) is NaN.

    rates = Ranking(score, is_positive).rates()    # or .rates(weights), weights of shape (R, n)
    rates.auroc(), rates.eer(), rates.apcer(0.0)   # each of shape (R,)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lookhere.errors import DataError

Floats = NDArray[np.float64]


class Ranking:
    """Rows sorted by score, once for all weightings.

    Args:
        score: ``n`` finite numbers, high = positive.
        is_positive: ``n`` bool.
        species: ``n`` names; the species of the positives are told apart in `ErrorRates.apcer`. Default: one species.

    Raises:
        DataError: a score that is not finite.
    """

    def __init__(self, score: ArrayLike, is_positive: ArrayLike, species: NDArray[Any] | None = None) -> None:
        self.score: Floats = np.asarray(score, dtype=np.float64)
        positive = np.asarray(is_positive, dtype=bool)
        bad = np.flatnonzero(~np.isfinite(self.score))
        if len(bad):
            raise DataError(f"score {bad[0]} is {self.score[bad[0]]}: expected a finite number")
        code = np.zeros(len(positive), dtype=np.int64) if species is None else pd.factorize(species)[0]
        order = np.argsort(self.score, kind="stable")
        rows = order[positive[order]]
        self.negatives = order[~positive[order]]
        self.species = [rows[code[rows] == kind] for kind in np.unique(code[rows])]

    @cached_property
    def steps(self) -> Floats:
        """Thresholds from -inf (all positive) over every distinct score to inf (all negative), ascending."""
        return np.concatenate([[-np.inf], np.unique(self.score), [np.inf]])

    @cached_property
    def beaten(self) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """For the positives of each species: how many negatives lie below, and at or below, their score."""
        score = self.score[self.negatives]
        return [
            (np.searchsorted(score, self.score[rows], "left"), np.searchsorted(score, self.score[rows], "right"))
            for rows in self.species
        ]

    def rates(self, weights: NDArray[Any] | None = None) -> ErrorRates:
        """Return the error rates under ``weights`` ``R n`` (non-negative counts); by default every row counts once."""
        if weights is None:
            weights = np.ones((1, len(self.score)))
        return ErrorRates(self, weights)

    def eer_threshold(self) -> float:
        """Return the threshold at which APCER and BPCER are closest; NaN if a class is missing.

        It lies halfway between the two neighbouring scores that it separates, so that with classes well apart it is in
        the middle of the gap. Of two equally close thresholds, the lower one is taken, which misses fewer positives.
        """
        rates = self.rates()
        if not rates.positives[0] or not rates.negatives[0]:
            return float("nan")
        last = rates.crossing()
        gap_before, gap = rates.gap(last - 1), rates.gap(last)
        step = last[0] - int(-gap_before[0] <= gap[0])
        below, above = float(self.steps[step - 1]), float(self.steps[step])
        middle = below + (above - below) / 2
        # No middle below the lowest score, nor between neighbouring floats.
        return middle if middle > below else above


@dataclass(frozen=True)
class Counts:
    """Rows of one kind, ascending in score, counted under R weightings."""

    score: Floats
    """``m``, ascending."""
    weight: Floats
    """``R m``."""

    @cached_property
    def cumulative(self) -> Floats:
        """``R m+1``: weight of the first 0, 1, … m rows."""
        total = np.zeros((len(self.weight), len(self.score) + 1))
        np.cumsum(self.weight, axis=1, out=total[:, 1:])
        return total

    @property
    def total(self) -> Floats:
        """``R``: weight of all rows."""
        return self.cumulative[:, -1]

    def below(self, threshold: float | Floats) -> Floats:
        """Return the weight of rows with score < threshold ``R`` (or one for all); NaN for a NaN threshold."""
        threshold = np.broadcast_to(threshold, len(self.weight))
        count = self.cumulative[np.arange(len(threshold)), np.searchsorted(self.score, threshold, "left")]
        return np.where(np.isnan(threshold), np.nan, count)


class ErrorRates:
    """Error rates of a `Ranking` under R weightings of its rows; every method returns ``R`` values in [0, 1] or NaN."""

    def __init__(self, ranking: Ranking, weights: NDArray[Any]) -> None:
        def count(rows: NDArray[np.intp]) -> Counts:
            return Counts(ranking.score[rows], weights[:, rows].astype(np.float64, copy=False))

        self.ranking = ranking
        self.negative = count(ranking.negatives)
        self.species = [count(rows) for rows in ranking.species]
        self.negatives = self.negative.total
        self.positives = np.zeros(len(weights)) + sum(counts.total for counts in self.species)

    def missed(self, threshold: float | Floats) -> Floats:
        """Return the weight of all positives with score < threshold."""
        zero = np.where(np.isnan(threshold), np.nan, np.zeros(len(self.positives)))
        return zero + sum(counts.below(threshold) for counts in self.species)

    def auroc(self) -> Floats:
        """Area under the ROC curve: the chance that a positive outscores a negative, ties half (Mann-Whitney)."""
        wins = np.zeros(len(self.positives))
        for of_species in self.wins():
            wins += of_species
        return _ratio(wins, self.positives * self.negatives)

    def wins(self) -> list[Floats]:
        """Return, for each species, the weight of the pairs in which its positive outscores a negative, ties half."""
        found = []
        for counts, (below, up_to) in zip(self.species, self.ranking.beaten, strict=True):
            beaten = self.negative.cumulative[:, below] + self.negative.cumulative[:, up_to]
            found.append(np.einsum("rn,rn->r", counts.weight, beaten) / 2)
        return found

    def apcer(self, threshold: float | Floats) -> Floats:
        """APCER (ISO/IEC 30107-3): the share of positives with score < threshold, of the species where it is largest.

        Species without weight take no part.
        """
        worst = np.full(len(self.positives), np.nan)
        for counts in self.species:
            worst = np.fmax(worst, _ratio(counts.below(threshold), counts.total))
        return worst

    def bpcer(self, threshold: float | Floats) -> Floats:
        """BPCER (ISO/IEC 30107-3): the share of negatives with score ≥ threshold."""
        return _ratio(self.negatives - self.negative.below(threshold), self.negatives)

    def detection_rate(self, threshold: float | Floats) -> Floats:
        """Return the share of all positives with score ≥ threshold: 1 minus the APCER pooled over species."""
        return _ratio(self.positives - self.missed(threshold), self.positives)

    def accuracy(self, threshold: float | Floats) -> Floats:
        """Return the share of rows decided correctly."""
        correct = self.positives - self.missed(threshold) + self.negative.below(threshold)
        return _ratio(correct, self.positives + self.negatives)

    def threshold_at_bpcer(self, q: float) -> Floats:
        """Return the lowest threshold with BPCER ≤ q, by order statistics: no interpolation, exact for tied scores.

        With N negatives and ``k = floor(q N)``, it lies just above the (k+1)-th highest negative score; a row of weight
        w takes w places in that order. NaN, "not resolvable", for N < 1/q, where no single error is allowed.
        """
        total = self.negatives
        # q N as a float may fall just short of an integer: 0.29 * 100 = 28.999999999999996.
        allowed = np.floor(q * total + 1e-9)
        resolvable = (total > 0) & (allowed >= 1)
        if not resolvable.any():
            return np.full(len(total), np.nan)
        rows = np.arange(len(total))
        place = _first(
            lambda i: self.negative.cumulative[rows, i + 1] >= total - allowed, len(self.negative.score) - 1, len(total)
        )
        return np.where(resolvable, np.nextafter(self.negative.score[place], np.inf), np.nan)

    def eer(self) -> Floats:
        """Equal error rate: where APCER, pooled over species, and BPCER cross, linear between thresholds."""
        last = self.crossing()
        before, after = self.gap(last - 1), self.gap(last)
        steps, positives = self.ranking.steps, self.positives
        start, end = (_ratio(self.missed(steps[index]), positives) for index in (last - 1, last))
        # The gap grows strictly from below 0 to at least 0, so this never divides by 0 where both classes have weight.
        return start + _ratio(-before, after - before) * (end - start)

    def gap(self, step: NDArray[np.intp]) -> Floats:
        """Return pooled APCER - BPCER at the thresholds ``ranking.steps[step]``."""
        threshold = self.ranking.steps[step]
        return _ratio(self.missed(threshold), self.positives) - self.bpcer(threshold)

    def crossing(self) -> NDArray[np.intp]:
        """Return the first step where APCER ≥ BPCER: never step 0, where the gap is -1 (NaN without a class)."""
        return _first(lambda step: self.gap(step) >= 0, len(self.ranking.steps) - 1, len(self.positives))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Divide; 0/0 is NaN."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole != 0)


def _first(holds: Callable[[NDArray[np.intp]], NDArray[np.bool_]], last: int, count: int) -> NDArray[np.intp]:
    """Return, for each of ``count`` weightings, the first index ≤ ``last`` where the monotone ``holds`` is true."""
    low, high = np.zeros(count, dtype=np.intp), np.full(count, last, dtype=np.intp)
    while (low < high).any():
        middle = (low + high) // 2
        found = holds(middle)
        low, high = np.where(found, low, middle + 1), np.where(found, middle, high)
    return low

"""Are two methods different? Intervals over seeds and test images, and tests over seeds.

The trainings of two methods are paired by seed, and all of them are tested on the same images. A difference in AUROC
then varies for two reasons: another seed would give other networks, and another test set other images. Student's t over
seeds (`paired_difference`) knows the first, DeLong's test (``delong.py``) the second, `hierarchical_difference` both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lookhere.evaluation.evaluate import MOST_UNDEFINED
from lookhere.evaluation.metrics import Ranking
from lookhere.evaluation.statistics import Paired, Resampler, percentile_interval

Floats = NDArray[np.float64]
Names = NDArray[np.object_]

EXACT = 20
"""Most pairs for which a sign-flip test lists all 2ⁿ signs."""


@dataclass(frozen=True)
class Draws:
    """The AUROC of several runs when the same test images are drawn again, for any choice of the positives' kinds."""

    kinds: tuple[str, ...]
    """``k`` kinds of positives, such as attack types."""
    wins: Floats
    """``s r k``: by run and resample, weight of the pairs in which a positive of a kind outscores a negative."""
    positives: Floats
    """``r k``: positives drawn."""
    negatives: Floats
    """``r``: negatives drawn."""

    def auroc(self, kinds: Sequence[str] | None = None) -> Floats:
        """Return the AUROC ``s r`` for the positives of some kinds (default: all); NaN where none was drawn."""
        chosen = [i for i, kind in enumerate(self.kinds) if kinds is None or kind in kinds]
        pairs = self.positives[:, chosen].sum(axis=1) * self.negatives
        wins = self.wins[:, :, chosen].sum(axis=2)
        return np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs != 0)


def draw_aurocs(
    scores: ArrayLike,
    is_positive: ArrayLike,
    group: Names | None = None,
    kind: Names | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Draws | None:
    """Draw test images with replacement and rank every run on the same draws; None if they cannot be drawn.

    They cannot where a class has only one image or group: it would seem to be known exactly. About 0.1 s per run with
    2,000 images and 2,000 resamples.

    Args:
        scores: ``s n``, by run and image; high = positive.
        is_positive: ``n`` bool.
        group: ``n`` subjects or patients, whose images are drawn together; blank = an image of its own (`Resampler`).
        kind: ``n`` kinds; those of the positives can be told apart afterwards.
        resamples: number of draws.
        seed: decides them.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    positive = np.asarray(is_positive, dtype=bool)
    kind = np.full(len(positive), "", dtype=object) if kind is None else kind
    kinds = tuple(sorted(set(kind[positive])))
    # By code, so that the species of a Ranking, which come in the order of their codes, are in the order of `kinds`.
    resampler = Resampler(positive, np.full(len(positive), "", dtype=object) if group is None else group)
    if min(resampler.of_positives, resampler.of_negatives) < 2:
        return None
    order = np.argsort([kinds.index(name) if name in kinds else len(kinds) for name in kind], kind="stable")
    rankings = [Ranking(row[order], positive[order], kind[order]) for row in table]
    wins: list[Floats] = []
    positives, negatives = [], []
    for weights in resampler.draw(resamples, seed):
        ordered = weights[:, order]
        wins.append(np.stack([np.stack(ranking.rates(ordered).wins(), axis=1) for ranking in rankings]))
        rates = rankings[0].rates(ordered)
        positives.append(np.stack([counts.total for counts in rates.species], axis=1))
        negatives.append(rates.negatives)
    return Draws(kinds, np.concatenate(wins, axis=1), np.concatenate(positives), np.concatenate(negatives))


def hierarchical_interval(differences: ArrayLike, *, seed: int = 0, level: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile interval of a mean difference over seeds and images; None if most draws are undefined.

    Each resample draws images, as the rows' columns already are, and then seeds with replacement. The images are the
    same for all seeds, as they are in the experiment: seeds and images are crossed (Owen 2007, *The pigeonhole
    bootstrap*). With few seeds it is too narrow for the seeds' part: their variance comes out (s - 1)/s of what it is,
    and no quantile of Student's makes up for how badly s seeds tell it. `widest` keeps the wider interval.

    Args:
        differences: ``s r``, by seed and draw of images; NaN = undefined.
        seed: of the draw of seeds.
        level: coverage that the interval aims at, in (0, 1).
    """
    table = np.asarray(differences, dtype=np.float64)
    defined = table[:, ~np.isnan(table).any(axis=0)]
    seeds, count = defined.shape
    if not count or count < (1 - MOST_UNDEFINED) * table.shape[1]:
        return None
    picks = np.random.default_rng(seed).integers(seeds, size=(seeds, count))
    return percentile_interval(np.take_along_axis(defined, picks, axis=0).mean(axis=0), level)


def hierarchical_difference(
    a: Mapping[int, ArrayLike],
    b: Mapping[int, ArrayLike],
    is_positive: ArrayLike,
    group: Names | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Paired:
    """Return the mean difference in AUROC, ``a - b``, with the bootstrap interval over seeds and test images.

    Args:
        a: by seed of training, the scores of the test images, ``n`` each; high = positive.
        b: the same for the other method, of the same images in the same order.
        is_positive: ``n`` bool.
        group: ``n`` subjects or patients whose images are drawn together; blank = an image of its own.
        resamples: number of draws of seeds and images.
        seed: decides the draws.
        level: coverage that the interval aims at, in (0, 1).
    """
    common = sorted(a.keys() & b.keys())
    scores = [np.asarray(one[s], dtype=np.float64) for one in (a, b) for s in common]
    auroc = [float(Ranking(row, is_positive).rates().auroc()[0]) for row in scores]
    n = len(common)
    values = tuple(x - y for x, y in zip(auroc[:n], auroc[n:], strict=True))
    if n < 2 or np.isnan(values).any():
        why = f"an interval needs at least 2 seeds in common, there are {n}" if n < 2 else "a class has no images"
        return Paired(n, values[0] if n == 1 else None, None, None, values, why)
    mean = float(np.mean(values))
    draws = draw_aurocs(scores, is_positive, group, resamples=resamples, seed=seed)
    drawn = None if draws is None else draws.auroc()
    interval = None if drawn is None else hierarchical_interval(drawn[:n] - drawn[n:], seed=seed, level=level)
    if interval is None:
        return Paired(n, mean, None, None, values, "a class has only one image or group")
    return Paired(n, mean, *interval, values, images=True)


def widest(paired: Paired, interval: tuple[float, float] | None) -> Paired:
    """Return ``paired`` with the interval that holds both its own and ``interval``."""
    if interval is None or paired.low is None or paired.high is None:
        return paired
    return replace(paired, low=min(paired.low, interval[0]), high=max(paired.high, interval[1]), images=True)


def sign_flip_p(differences: Sequence[float], *, resamples: int = 100_000, seed: int = 0) -> float:
    """Return the two-sided p of the mean of paired differences when each could as well have the other sign.

    Exact for up to `EXACT` pairs, where it can be no smaller than ``smallest_rank_p``; for more, by drawing signs.
    1 for no pairs.
    """
    values = np.asarray(differences, dtype=np.float64)
    # Sums that are equal in exact arithmetic may differ in the last bits.
    observed = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if len(values) <= EXACT:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme = sum(
        int((np.abs((2.0 * rng.integers(2, size=(1000, len(values))) - 1) @ values) >= observed).sum())
        for _ in range(resamples // 1000)
    )
    return (extreme + 1) / (resamples // 1000 * 1000 + 1)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test, without the pairs that are equal; exact with ties too."""
    values = np.asarray([value for value in differences if value != 0], dtype=np.float64)
    return sign_flip_p(list(np.sign(values) * stats.rankdata(np.abs(values))))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for testing all of them (Holm 1979), in the order given.

    Reading those below α as differences keeps the chance of a single false one at or below α.
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted

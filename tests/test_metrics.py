from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lookhere.errors import DataError
from lookhere.evaluation.metrics import ErrorRates, Ranking

QUANTILES = (0.01, 0.05, 0.29, 0.5)


def random_case(seed: int):
    """Scores with many ties, two classes, three species, and weights of which some are 0."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 60))
    is_positive = np.arange(n) % 3 != 0 if seed % 2 else rng.permutation(np.arange(n) < max(1, n // 4))
    species = np.array(["print", "lens", "display"], dtype=object)[rng.integers(3, size=n)]
    score = rng.integers(-4, 5, size=n) / 2 + is_positive * 0.5 * (seed % 3)
    weights = rng.integers(0, 4, size=n)
    weights[[np.flatnonzero(is_positive)[0], np.flatnonzero(~is_positive)[0]]] = 1
    return score, is_positive, species, weights


def every_metric(rates: ErrorRates) -> np.ndarray:
    at = [rates.threshold_at_bpcer(q) for q in QUANTILES]
    values = [rates.auroc(), rates.eer(), *at, *(rates.apcer(t) for t in at), *(rates.bpcer(t) for t in at)]
    for threshold in (-1.0, 0.25, 0.5, 9.0):
        values += [f(threshold) for f in (rates.apcer, rates.bpcer, rates.detection_rate, rates.accuracy)]
    return np.array(values)


@pytest.mark.parametrize("seed", range(20))
def test_auroc_equals_scikit_learn_with_ties_and_weights(seed):
    score, is_positive, species, weights = random_case(seed)
    ranking = Ranking(score, is_positive, species)
    assert ranking.rates().auroc()[0] == pytest.approx(roc_auc_score(is_positive, score), abs=1e-12)
    weighted = roc_auc_score(is_positive, score, sample_weight=weights)
    assert ranking.rates(weights[None]).auroc()[0] == pytest.approx(weighted, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_rates_equal_their_definitions(seed):
    score, is_positive, species, _ = random_case(seed)
    rates = Ranking(score, is_positive, species).rates()
    attacks, bona_fide = score[is_positive], score[~is_positive]
    for t in (*np.unique(score), -99.0, 99.0, 0.3):
        missed = {
            name: [s < t for s, kind in zip(attacks, species[is_positive], strict=True) if kind == name]
            for name in set(species[is_positive])
        }
        assert rates.apcer(t)[0] == max(sum(values) / len(values) for values in missed.values())
        assert rates.bpcer(t)[0] == sum(s >= t for s in bona_fide) / len(bona_fide)
        assert rates.detection_rate(t)[0] == sum(s >= t for s in attacks) / len(attacks)
        right = sum((s >= t) == y for s, y in zip(score, is_positive, strict=True))
        assert rates.accuracy(t)[0] == right / len(score)


@pytest.mark.parametrize("seed", range(20))
def test_operating_point_is_the_best_that_keeps_the_bpcer(seed):
    score, is_positive, species, _ = random_case(seed)
    rates = Ranking(score, is_positive, species).rates()
    bona_fide = score[~is_positive]
    candidates = [*np.unique(score), *(np.nextafter(s, np.inf) for s in score)]
    for q in QUANTILES:
        t = rates.threshold_at_bpcer(q)[0]
        if len(bona_fide) < 1 / q:
            assert math.isnan(t)
            assert np.isnan([rates.apcer(t), rates.bpcer(t)]).all()
            continue
        allowed = [c for c in candidates if sum(s >= c for s in bona_fide) / len(bona_fide) <= q]
        assert rates.bpcer(t)[0] <= q
        assert rates.apcer(t)[0] == min(rates.apcer(c)[0] for c in allowed)


def test_a_product_just_short_of_an_integer_allows_as_many_errors():
    assert 0.29 * 100 < 29
    rates = Ranking(np.arange(101.0), np.arange(101) == 100).rates()
    assert rates.bpcer(rates.threshold_at_bpcer(0.29))[0] == 0.29


@pytest.mark.parametrize("seed", range(20))
def test_eer_is_where_the_polylines_of_both_errors_cross(seed):
    score, is_positive, species, _ = random_case(seed)
    steps = [*np.unique(score), np.inf]
    apcer = np.array([(score[is_positive] < t).mean() for t in steps])
    bpcer = np.array([(score[~is_positive] >= t).mean() for t in steps])
    along = np.linspace(0, len(steps) - 1, 200_001)
    gap = np.interp(along, range(len(steps)), apcer - bpcer)
    expected = np.interp(along[np.abs(gap).argmin()], range(len(steps)), apcer)
    ranking = Ranking(score, is_positive, species)
    assert ranking.rates().eer()[0] == pytest.approx(expected, abs=1e-3)
    threshold = ranking.eer_threshold()
    closest = min(abs((score[is_positive] < t).mean() - (score[~is_positive] >= t).mean()) for t in steps)
    assert abs((score[is_positive] < threshold).mean() - (score[~is_positive] >= threshold).mean()) == closest


@pytest.mark.parametrize("seed", range(20))
def test_integer_weights_equal_repeated_rows_for_every_metric(seed):
    score, is_positive, species, weights = random_case(seed)
    weighted = every_metric(Ranking(score, is_positive, species).rates(np.stack([weights, np.ones_like(weights)])))
    repeated = Ranking(*(np.repeat(column, weights) for column in (score, is_positive, species)))
    np.testing.assert_array_equal(weighted[:, 0], every_metric(repeated.rates())[:, 0])
    np.testing.assert_array_equal(weighted[:, 1], every_metric(Ranking(score, is_positive, species).rates())[:, 0])


def test_metrics_do_not_depend_on_the_order_of_rows_or_a_monotone_map():
    score, is_positive, species, _ = random_case(5)
    order = np.random.default_rng(0).permutation(len(score))
    expected = Ranking(score, is_positive, species).rates()
    for other in (
        Ranking(score[order], is_positive[order], species[order]).rates(),
        Ranking(np.exp(score), is_positive, species).rates(),
    ):
        assert [other.auroc()[0], other.eer()[0]] == [expected.auroc()[0], expected.eer()[0]]
        assert other.apcer(other.threshold_at_bpcer(0.29)) == expected.apcer(expected.threshold_at_bpcer(0.29))


def test_classes_apart_have_no_errors_at_the_middle_of_the_gap():
    ranking = Ranking([-3, -1, 2, 7], [False, False, True, True])
    assert ranking.eer_threshold() == 0.5
    assert (ranking.rates().auroc(), ranking.rates().eer()) == (1.0, 0.0)
    close = Ranking([1.0, np.nextafter(1.0, 2)], [False, True])
    assert close.rates().accuracy(close.eer_threshold()) == 1.0


def test_constant_scores_are_chance_and_miss_every_attack_at_a_fixed_bpcer():
    ranking = Ranking(np.zeros(200), np.arange(200) < 100)
    rates = ranking.rates()
    assert (rates.auroc(), rates.eer(), ranking.eer_threshold()) == (0.5, 0.5, 0.0)
    threshold = rates.threshold_at_bpcer(0.01)
    assert (rates.apcer(threshold), rates.bpcer(threshold)) == (1.0, 0.0)


@pytest.mark.parametrize("positives", [0, 3])
@pytest.mark.parametrize("negatives", [0, 1])
def test_a_missing_class_is_undefined_and_never_a_number(positives, negatives):
    ranking = Ranking(np.arange(float(positives + negatives)), [True] * positives + [False] * negatives)
    rates = ranking.rates()
    both = bool(positives and negatives)
    defined = {
        "auroc": (rates.auroc(), both),
        "eer": (rates.eer(), both),
        "eer_threshold": (ranking.eer_threshold(), both),
        "apcer": (rates.apcer(0.0), bool(positives)),
        "detection_rate": (rates.detection_rate(0.0), bool(positives)),
        "bpcer": (rates.bpcer(0.0), bool(negatives)),
        "accuracy": (rates.accuracy(0.0), bool(positives or negatives)),
        "threshold_at_bpcer": (rates.threshold_at_bpcer(0.05), False),
    }
    assert {name: bool(np.isfinite(value)) for name, (value, _) in defined.items()} == {
        name: expected for name, (_, expected) in defined.items()
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(DataError, match=f"score 1 is {bad}"):
        Ranking([0.0, bad], [True, False])

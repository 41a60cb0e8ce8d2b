from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lookhere.evaluation import statistics
from lookhere.evaluation.statistics import Resampler, paired_difference, smallest_rank_p, summarise


def test_summary_has_the_sample_standard_deviation():
    summary = summarise([1.0, 2.0, 4.0])
    assert (summary.mean, summary.sd) == (pytest.approx(7 / 3), pytest.approx(stats.tstd([1, 2, 4])))
    assert summarise([0.5]).sd is None
    with pytest.raises(ValueError):
        summarise([])


def test_paired_interval_is_that_of_the_paired_t_test_over_common_seeds():
    a = {0: 0.91, 1: 0.88, 2: 0.93, 3: 0.90, 9: 0.1}
    b = {3: 0.86, 2: 0.90, 1: 0.89, 0: 0.85, 7: 0.9}
    paired = paired_difference(a, b)
    oracle = stats.ttest_rel([a[s] for s in range(4)], [b[s] for s in range(4)]).confidence_interval(0.95)
    assert paired.n == 4
    assert paired.values == pytest.approx((0.06, -0.01, 0.03, 0.04))
    assert (paired.low, paired.high) == (pytest.approx(oracle.low), pytest.approx(oracle.high))


def test_too_few_common_seeds_give_no_interval_but_a_reason():
    one = paired_difference({0: 0.5, 1: 0.7}, {1: 0.6})
    assert (one.n, one.low, one.high) == (1, None, None)
    assert one.mean == pytest.approx(0.1)
    assert "there are 1" in str(one.why)
    assert paired_difference({0: 0.5}, {1: 0.6}).mean is None


@pytest.mark.parametrize("n", [2, 5, 6, 10])
def test_smallest_rank_p_is_what_wilcoxon_gives_for_the_clearest_difference(n):
    assert smallest_rank_p(n) == pytest.approx(stats.wilcoxon(np.arange(1.0, n + 1), method="exact").pvalue)


def drawn(is_positive, group, resamples=400, seed=0):
    return np.concatenate(list(Resampler(np.array(is_positive), np.array(group, dtype=object)).draw(resamples, seed)))


def test_images_are_drawn_within_their_class():
    is_positive = np.arange(30) < 10
    weights = drawn(is_positive, [""] * 30)
    assert weights.shape == (400, 30)
    assert (weights[:, :10].sum(axis=1) == 10).all()
    assert (weights[:, 10:].sum(axis=1) == 20).all()
    # Each count is binomial(10, 1/10): mean 1, variance 0.9.
    assert weights[:, :10].mean() == pytest.approx(1)
    assert weights[:, :10].var() == pytest.approx(0.9, rel=0.1)


def test_groups_are_drawn_whole_and_a_blank_group_is_a_row_of_its_own():
    group = ["a", "b", "a", "", "", "c", "c"]
    weights = drawn([1, 1, 0, 0, 0, 0, 0], group)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 5] == weights[:, 6]).all()
    assert (weights[:, 3] != weights[:, 4]).any()
    # Strata: a holds both classes, b only positives; the two blank rows and c only negatives.
    assert (weights[:, [0, 1]] == 1).all()
    assert (weights[:, [3, 4, 5]].sum(axis=1) == 3).all()


def test_the_seed_decides_the_weights_and_chunks_do_not_change_their_number(monkeypatch):
    is_positive, group = np.arange(50) < 20, [""] * 50
    assert (drawn(is_positive, group) == drawn(is_positive, group)).all()
    assert (drawn(is_positive, group, seed=1) != drawn(is_positive, group)).any()
    monkeypatch.setattr(statistics, "CELLS", 350)
    chunks = list(Resampler(is_positive, np.array(group, dtype=object)).draw(10, 0))
    assert [len(chunk) for chunk in chunks] == [7, 3]

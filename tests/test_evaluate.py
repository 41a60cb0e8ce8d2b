from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, roc_auc_score

from lookhere.errors import DataError, UsageError
from lookhere.evaluation.evaluate import DEFINITIONS, SUMMARY_COLUMNS, evaluate, summary_rows
from lookhere.evaluation.scores import Scores


def text(values) -> np.ndarray:
    return np.array(list(values), dtype=object)


def make_scores(n: int = 600, classes: tuple[str, ...] = ("bona fide", "attack"), seed: int = 0) -> Scores:
    """One third val; attacks of the types lens and print, and, in the test splits alone, the unseen display."""
    rng = np.random.default_rng(seed)
    label = rng.integers(len(classes), size=n)
    split = text(np.array(["val", "test", "test_far"])[np.arange(n) % 3])
    attack = label == classes.index("attack")
    kinds = np.where(split == "val", rng.integers(2, size=n), rng.integers(3, size=n))
    kind = np.array(["lens", "print", "display"])[kinds]
    logits = (
        rng.normal(size=(n, len(classes))) + np.eye(len(classes))[label] * np.where(kind == "display", 0.5, 2)[:, None]
    )
    return Scores(
        classes=classes,
        id=text(f"{row}.png" for row in range(n)),
        split=split,
        label=label,
        type=text(np.where(attack, kind, "bona fide")),
        type_seen=text(np.where(attack & (kind == "display"), "no", "yes")),
        group=text([""] * n),
        logits=logits.astype(np.float32).astype(np.float64),
    )


def subset_of(result, split="test", name="all"):
    return next(s for s in result["subsets"] if (s["split"], s["name"]) == (split, name))


def test_subsets_hold_their_positives_and_all_negatives_of_the_split():
    scores = make_scores()
    result = evaluate(scores, positive="attack", bootstrap=0)
    names = [(s["split"], s["name"], s["kind"]) for s in result["subsets"]]
    types = [("type: display", "type"), ("type: lens", "type"), ("type: print", "type")]
    expected = [("all", "all"), ("seen", "seen"), ("unseen", "unseen"), *types]
    assert names[:12] == [(split, *rest) for split in ("test", "test_far") for rest in expected]
    assert names[12:] == [("val", *rest) for rest in [("all", "all"), ("seen", "seen"), *types[1:]]]
    margin = scores.margin("attack")
    negative = (scores.split == "test") & (scores.label == 0)
    for name, types in (
        ("all", ["display", "lens", "print"]),
        ("seen", ["lens", "print"]),
        ("unseen", ["display"]),
        ("type: lens", ["lens"]),
    ):
        subset = subset_of(result, name=name)
        rows = negative | ((scores.split == "test") & np.isin(scores.type, types))
        assert subset["types"] == types
        assert (subset["positives"], subset["negatives"]) == (rows.sum() - negative.sum(), negative.sum())
        expected_auroc = roc_auc_score(scores.label[rows], margin[rows])
        assert subset["metrics"]["auroc"]["value"] == pytest.approx(expected_auroc, abs=1e-12)
        half = accuracy_score(scores.label[rows], scores.logits[rows].argmax(axis=1))
        assert subset["metrics"]["accuracy_at_half"]["value"] == pytest.approx(half)


def test_the_threshold_comes_from_val_alone():
    scores = make_scores()
    result = evaluate(scores, positive="attack", bootstrap=0)
    val = scores.split == "val"
    tests_shifted = replace(scores, logits=scores.logits + 5 * np.outer(~val, [0, 1]))
    assert evaluate(tests_shifted, positive="attack", bootstrap=0)["threshold"] == result["threshold"]
    assert result["threshold"]["source"] == f"EER on val (n={val.sum()})"
    other = evaluate(scores.select(~val), positive="attack", validation=scores.select(val), bootstrap=0)
    assert other["threshold"] == result["threshold"]
    assert other["subsets"] == [s for s in result["subsets"] if s["split"] != "val"]
    at_val = subset_of(result, "val")["metrics"]
    n_positive, n_negative = ((scores.label[val] == value).sum() for value in (1, 0))
    pooled_apcer = 1 - at_val["detection_rate_at_val"]["value"]
    assert abs(pooled_apcer - at_val["bpcer_at_val"]["value"]) <= max(1 / n_positive, 1 / n_negative)


def test_apcer_is_that_of_the_worst_type_and_every_metric_is_defined_somewhere():
    result = evaluate(make_scores(), positive="attack", bootstrap=20)
    for name in ("apcer_at_val", "apcer_at_half", "apcer_at_bpcer_5"):
        by_type = [
            s["metrics"][name]["value"] for s in result["subsets"] if s["split"] == "test" and s["kind"] == "type"
        ]
        assert subset_of(result)["metrics"][name]["value"] == max(by_type)
    three = evaluate(make_scores(classes=("bona fide", "attack", "unsure")), positive="attack", bootstrap=20)
    assert set(subset_of(three)["metrics"]) == set(DEFINITIONS)
    assert set(subset_of(result)["metrics"]) == set(DEFINITIONS) - {"accuracy"}
    for metric in subset_of(three)["metrics"].values():
        assert metric["value"] is None or metric["low"] <= metric["high"]


def test_many_classes_have_the_accuracy_of_the_largest_logit():
    scores = make_scores(classes=("bona fide", "attack", "unsure"))
    rows = scores.split == "test"
    metrics = subset_of(evaluate(scores, positive="attack", bootstrap=0))["metrics"]
    expected = accuracy_score(scores.label[rows], scores.logits[rows].argmax(axis=1))
    assert metrics["accuracy"]["value"] == pytest.approx(expected)
    expected = roc_auc_score(scores.label[rows] == 1, softmax(scores.logits[rows], axis=1)[:, 1])
    assert metrics["auroc"]["value"] == pytest.approx(expected, abs=1e-12)


def test_what_is_undefined_is_null_with_a_reason():
    scores = make_scores()
    test = scores.split == "test"
    lone = scores.select((test & (scores.label == 1)) | (np.cumsum(test & (scores.label == 0)) == 1) & test)
    result = evaluate(lone, positive="attack", bootstrap=50)
    assert result["threshold"] == {"value": None, "why": "no threshold from val: it has no labelled images"}
    one = subset_of(result)["metrics"]
    assert one["auroc"]["value"] is not None
    assert (one["auroc"]["low"], one["auroc"]["why"]) == (None, "no interval: a class has only one image or group")
    assert one["bpcer_at_val"]["why"] == result["threshold"]["why"]
    assert one["apcer_at_bpcer_1"]["why"].startswith("not resolvable: a BPCER of 1 % needs at least 100 negatives")
    for label, reason in ((0, "no positives"), (1, "no negatives")):
        result = evaluate(scores.select((scores.label == label) | ~test), positive="attack", bootstrap=10)
        metrics = subset_of(result)["metrics"]
        assert metrics["auroc"] == {"value": None, "low": None, "high": None, "why": reason}
        assert metrics["apcer_at_bpcer_5"]["why"] == reason
        only = "bpcer_at_val" if label == 0 else "apcer_at_val"
        assert metrics[only]["low"] <= metrics[only]["value"] <= metrics[only]["high"]
        json.dumps(result, allow_nan=False)
        assert f"undefined ({reason})" in summary_rows(result)[0]


def test_unlabelled_images_are_counted_and_left_out():
    scores = make_scores()
    hidden = np.arange(len(scores)) % 5 == 0
    result = evaluate(replace(scores, label=np.where(hidden, -1, scores.label)), positive="attack", bootstrap=0)
    expected = evaluate(scores.select(~hidden), positive="attack", bootstrap=0)
    assert result == expected | {"unlabelled": hidden.sum()}
    with pytest.raises(DataError, match="none of the 600 images has a label"):
        evaluate(replace(scores, label=np.full(600, -1)), positive="attack")
    with pytest.raises(UsageError, match="did you mean 'attack'"):
        evaluate(scores, positive="atack")


def test_intervals_cover_a_known_truth():
    # Normal scores one standard deviation apart: the AUROC is Phi(1 / sqrt 2) = 0.760.
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = make_scores(360)
        test = scores.split == "test"
        logits = np.stack([np.zeros(360), rng.normal(size=360) + scores.label], axis=1)
        auroc = subset_of(evaluate(replace(scores, logits=logits).select(test), positive="attack", bootstrap=200))[
            "metrics"
        ]["auroc"]
        covered += auroc["low"] <= 0.7602 <= auroc["high"]
    # Binomial(60, 0.95): below 51 in one of 500 tries, and always for intervals of half the width.
    assert covered >= 51


def test_duplicated_images_of_a_group_do_not_narrow_the_interval():
    scores = make_scores(300)
    four = scores.select(np.repeat(np.arange(300), 4))
    grouped = replace(four, group=four.id)

    def auroc(which: Scores) -> dict[str, float]:
        return subset_of(evaluate(which, positive="attack", bootstrap=1000))["metrics"]["auroc"]

    single, naive, clustered = auroc(scores), auroc(four), auroc(grouped)
    width = [entry["high"] - entry["low"] for entry in (single, naive, clustered)]
    assert width[2] == pytest.approx(width[0], rel=0.15)
    assert width[1] == pytest.approx(width[0] / 2, rel=0.15)
    assert evaluate(grouped, positive="attack", bootstrap=1)["bootstrap"]["clustered_by_group"]


def test_an_interval_needs_resamples_where_the_metric_is_defined():
    # All but four negatives are one group, which a third of the resamples lack.
    scores = make_scores(300)
    test = scores.select(scores.split == "test")
    negatives = np.flatnonzero(test.label == 0)
    group = test.group.copy()
    group[negatives[:20]] = "large"
    some = replace(test, group=group).select(np.sort([*negatives[:24], *np.flatnonzero(test.label == 1)]))
    metric = subset_of(evaluate(some, positive="attack", bootstrap=200))["metrics"]["apcer_at_bpcer_5"]
    assert metric["value"] is not None
    assert metric["low"] is None
    assert "of 200 resamples" in metric["why"]


def test_result_is_reproducible_json_and_does_not_depend_on_the_order_of_rows():
    scores = make_scores()
    scores = replace(scores, logits=scores.logits.round(), group=text(str(row // 6) for row in range(600)))
    result = evaluate(scores, positive="attack", bootstrap=30, seed=3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert evaluate(scores, positive="attack", bootstrap=30, seed=3) == result
    shuffled = scores.select(np.random.default_rng(0).permutation(len(scores)))
    assert evaluate(shuffled, positive="attack", bootstrap=30, seed=3) == result
    rows = summary_rows(result)
    assert {len(row) for row in rows} == {len(SUMMARY_COLUMNS)}
    auroc = subset_of(result)["metrics"]["auroc"]
    assert rows[0][3] == f"{auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]"

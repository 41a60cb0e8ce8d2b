"""From scores to metrics: every split, its seen and unseen types, each with intervals, ready for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookhere.errors import DataError, UsageError
from lookhere.evaluation.metrics import ErrorRates, Ranking
from lookhere.evaluation.scores import Scores, index_of
from lookhere.evaluation.statistics import Resampler, percentile_interval

DEFINITIONS: dict[str, str] = {
    "auroc": "area under the ROC curve, ties counting half",
    "accuracy": "share of images whose largest logit is that of their class (more than two classes)",
    "accuracy_at_val": "share of images decided correctly, positive or not, at the threshold from val",
    "accuracy_at_half": "share of images decided correctly, positive or not, at probability 0.5",
    "eer": "equal error rate on the same images: where APCER (pooled over types) and BPCER cross, interpolated",
    "apcer_at_val": "share of positives missed at the threshold from val, largest over types (ISO/IEC 30107-3)",
    "bpcer_at_val": "share of negatives taken for positive at the threshold from val",
    "apcer_at_half": "share of positives missed at probability 0.5, largest over types (ISO/IEC 30107-3)",
    "bpcer_at_half": "share of negatives taken for positive at probability 0.5",
    "apcer_at_bpcer_1": "share of positives missed, largest over types, at the lowest threshold with BPCER ≤ 1 %",
    "realised_bpcer_1": "the BPCER at that threshold, which tied scores and few negatives can keep below 1 %",
    "apcer_at_bpcer_5": "share of positives missed, largest over types, at the lowest threshold with BPCER ≤ 5 %",
    "realised_bpcer_5": "the BPCER at that threshold, which tied scores and few negatives can keep below 5 %",
    "detection_rate_at_val": "share of all positives found at the threshold from val: 1 - APCER pooled over types",
}
"""What each metric is, in a line. Positives are attack presentations, negatives bona fide presentations."""

HALF = 0.0
"""The margin at a probability of 0.5."""
MOST_UNDEFINED = 0.05
"""Share of resamples that may leave a metric undefined (a class not drawn) before its interval means little."""

SUMMARY_COLUMNS = ("split", "subset", "pos / neg", "AUROC", "APCER@1%", "EER", "detected")


def evaluate(
    scores: Scores, *, positive: str, validation: Scores | None = None, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Evaluate every test split and ``val``; the result is ready for JSON and holds no NaN.

    The score is the margin of ``positive`` against all other classes (`Scores.margin`); an image is decided positive
    iff its margin is at or above the threshold, which is fixed on ``val`` alone: the point of equal error there.

    Each split gives the subsets ``all``; ``seen`` and ``unseen``, the positives whose type did or did not occur in
    training (where there are any); and one for each type of its positives. The negatives of a subset are always all
    negatives of the split. Images without a label are counted and left out.

    Every metric is ``{"value", "low", "high"}`` with a 95 % percentile bootstrap interval: over images, stratified by
    class, or over groups where there are any (`Resampler`). An undefined value or interval is null, and ``why`` says
    why. `DEFINITIONS` names the metrics. An interval at 0 or 1 has no width: resampling cannot show errors not seen.

    Args:
        scores: predictions, of all splits.
        positive: the positive class.
        validation: predictions whose rows of split ``val`` give the threshold; default: those of ``scores``.
        bootstrap: number of resamples; 0 gives no intervals.
        seed: of the bootstrap.

    Raises:
        UsageError: ``positive`` is not a class; ``bootstrap`` or ``seed`` is negative.
        DataError: no labelled image in ``val`` or a test split; other classes in ``validation``.
    """
    index = index_of(positive, scores.classes)
    if bootstrap < 0 or seed < 0:
        raise UsageError(f"bootstrap = {bootstrap}, seed = {seed}: expected numbers that are not negative")
    splits = [*sorted({name for name in scores.split if name.startswith("test")}), "val"]
    evaluated = np.isin(scores.split, splits)
    labelled = scores.select(evaluated & (scores.label >= 0))
    # By name, so that the bootstrap draws the same images in whatever order the rows come.
    labelled = labelled.select(np.argsort(labelled.id, kind="stable"))
    if not len(labelled):
        raise DataError(
            f"nothing to evaluate: none of the {len(scores)} images has a label and is in val or a test split"
        )
    threshold = _threshold(scores if validation is None else validation, scores.classes, positive)
    found = []
    for split in splits:
        part = labelled.select(labelled.split == split)
        is_positive = part.label == index
        for name, kind, chosen in subsets(part, is_positive) if len(part) else ():
            subset = part.select(chosen | ~is_positive)
            found.append(
                {"split": split, "name": name, "kind": kind} | _subset(subset, index, threshold, bootstrap, seed)
            )
    return {
        "positive": positive,
        "score": "margin",
        "threshold": threshold,
        "bootstrap": {"resamples": bootstrap, "clustered_by_group": bool((labelled.group != "").any()), "seed": seed},
        "unlabelled": int(evaluated.sum()) - len(labelled),
        "subsets": found,
    }


def _threshold(scores: Scores, classes: tuple[str, ...], positive: str) -> dict[str, Any]:
    if set(scores.classes) != set(classes):
        raise DataError(f"the validation predictions have the classes {list(scores.classes)}, expected {list(classes)}")
    val = scores.select((scores.split == "val") & (scores.label >= 0))
    value = Ranking(val.margin(positive), val.label == index_of(positive, val.classes)).eer_threshold()
    if np.isnan(value):
        lack = "positives and negatives" if len(val) else "images"
        return {"value": None, "why": f"no threshold from val: it has no labelled {lack}"}
    return {"value": value, "source": f"EER on val (n={len(val)})"}


def subsets(part: Scores, is_positive: NDArray[np.bool_]) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Return name, kind and positives of each subset of a split."""
    found = [("all", "all", is_positive)]
    for kind, seen in (("seen", "yes"), ("unseen", "no")):
        chosen = is_positive & (part.type_seen == seen)
        found += [(kind, kind, chosen)] if chosen.any() else []
    types = sorted(set(part.type[is_positive]) - {""})
    return found + [(f"type: {name}", "type", is_positive & (part.type == name)) for name in types]


def _subset(scores: Scores, index: int, threshold: dict[str, Any], bootstrap: int, seed: int) -> dict[str, Any]:
    """Return counts and metrics of one subset, whose positives are those of class ``index``."""
    is_positive = scores.label == index
    ranking = Ranking(scores.margin(scores.classes[index]), is_positive, scores.type)
    correct = (scores.logits.argmax(axis=1) == scores.label).astype(np.float64) if len(scores.classes) > 2 else None

    def measure(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        metrics = _measure(ranking.rates(weights), np.nan if threshold["value"] is None else threshold["value"])
        if correct is None:
            return metrics
        return {"accuracy": weights @ correct / weights.sum(axis=1)} | metrics

    resampler = Resampler(is_positive, scores.group)
    # A class whose only cluster is drawn each time would seem to be known exactly.
    alone = 1 in (resampler.of_positives, resampler.of_negatives)
    why_none = "a class has only one image or group" if alone else "no resamples were asked for"
    point = measure(np.ones((1, len(scores))))
    chunks = [measure(weights) for weights in resampler.draw(0 if alone else bootstrap, seed)]
    positives = int(is_positive.sum())
    negatives = len(scores) - positives
    metrics = {}
    for name, value in point.items():
        if np.isnan(value[0]):
            why = _why_undefined(name, positives, negatives, threshold)
            metrics[name] = {"value": None, "low": None, "high": None, "why": why}
        else:
            resamples = np.concatenate([chunk[name] for chunk in chunks]) if chunks else np.empty(0)
            metrics[name] = {"value": float(value[0])} | interval(resamples, why_none)
    types = sorted(set(scores.type[is_positive]) - {""})
    return {"positives": positives, "negatives": negatives, "types": types, "metrics": metrics}


def _measure(rates: ErrorRates, threshold: float) -> dict[str, NDArray[np.float64]]:
    one, five = rates.threshold_at_bpcer(0.01), rates.threshold_at_bpcer(0.05)
    return {
        "auroc": rates.auroc(),
        "accuracy_at_val": rates.accuracy(threshold),
        "accuracy_at_half": rates.accuracy(HALF),
        "eer": rates.eer(),
        "apcer_at_val": rates.apcer(threshold),
        "bpcer_at_val": rates.bpcer(threshold),
        "apcer_at_half": rates.apcer(HALF),
        "bpcer_at_half": rates.bpcer(HALF),
        "apcer_at_bpcer_1": rates.apcer(one),
        "realised_bpcer_1": rates.bpcer(one),
        "apcer_at_bpcer_5": rates.apcer(five),
        "realised_bpcer_5": rates.bpcer(five),
        "detection_rate_at_val": rates.detection_rate(threshold),
    }


def _why_undefined(name: str, positives: int, negatives: int, threshold: dict[str, Any]) -> str:
    at_bpcer = "_bpcer_" in name
    if not positives and name.startswith(("auroc", "eer", "apcer", "detection")):
        return "no positives"
    if not negatives and (name.startswith(("auroc", "eer", "bpcer")) or at_bpcer):
        return "no negatives"
    if at_bpcer:
        percent = int(name.rpartition("_")[2])
        return (
            f"not resolvable: a BPCER of {percent} % needs at least {100 // percent} negatives, there are {negatives}"
        )
    return str(threshold.get("why"))


def interval(resamples: NDArray[np.float64], why_none: str) -> dict[str, Any]:
    """Return the JSON form of the interval from a metric's values over the resamples, NaN where it was undefined."""
    defined = resamples[~np.isnan(resamples)]
    undefined = len(resamples) - len(defined)
    if len(resamples) and undefined <= MOST_UNDEFINED * len(resamples):
        low, high = percentile_interval(defined)
        return {"low": low, "high": high}
    why = f"undefined in {undefined} of {len(resamples)} resamples" if len(resamples) else why_none
    return {"low": None, "high": None, "why": f"no interval: {why}"}


def summary_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of a table with the columns `SUMMARY_COLUMNS`, as text, from what `evaluate` returned."""

    def show(metric: dict[str, Any], scale: int, digits: int) -> str:
        if metric["value"] is None:
            return f"undefined ({metric['why']})"
        value = f"{scale * metric['value']:.{digits}f}" + (" %" if scale == 100 else "")
        if metric["low"] is None:
            return value
        return f"{value} [{scale * metric['low']:.{digits}f}, {scale * metric['high']:.{digits}f}]"

    return [
        (
            subset["split"],
            subset["name"],
            f"{subset['positives']} / {subset['negatives']}",
            show(subset["metrics"]["auroc"], 1, 3),
            show(subset["metrics"]["apcer_at_bpcer_1"], 100, 1),
            show(subset["metrics"]["eer"], 100, 1),
            show(subset["metrics"]["detection_rate_at_val"], 100, 1),
        )
        for subset in result["subsets"]
    ]

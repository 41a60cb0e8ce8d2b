"""Does a network rely on the salient region? Measured on altered test images, without any heat map.

The AUROC on test images that have a map, with only the salient region kept, with it hidden, and with it on another
image's background, of the same class or of another one. A network that looks where people look keeps its AUROC on
backgrounds of another class; one that reads the background follows the background instead, below 0.5 if need be. What
is pasted is drawn by seed, so that every network is shown the same composites and differences are paired.

``pairs.py`` chooses the images, ``alterations.py`` alters them.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookhere.data.batches import Batches
from lookhere.data.cache import Dataset
from lookhere.errors import DataError
from lookhere.evaluation.alterations import CONDITIONS, EFFECT, RelianceOptions, alterations
from lookhere.evaluation.evaluate import interval, subsets
from lookhere.evaluation.metrics import Ranking
from lookhere.evaluation.pairs import Pairs, pair_images
from lookhere.evaluation.scores import Scores
from lookhere.evaluation.statistics import Resampler
from lookhere.progress import Track

Predict = Callable[[Tensor, Tensor], Tensor]
"""Images ``b 3 h w`` and their maps ``b 1 h w`` -> logits ``b k``."""
MakeBatches = Callable[[Dataset, NDArray[np.int64]], Batches]
"""A data set and rows of it -> their batches, in the order of the rows."""


@torch.inference_mode()
def predict_altered(
    predict: Predict, pairs: Pairs, batches: MakeBatches, options: RelianceOptions
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Return, by condition, the logits ``n k`` and the mean share of an image that is left of it.

    A network that reads a map at test time is given the image's own, or the lent one, in every condition.
    """
    rng = np.random.default_rng((options.seed, zlib.crc32(pairs.split.encode()), 1))
    streams = {name: batches(pairs.dataset, rows).epoch() for name, rows in pairs.partners.items()}
    logits: dict[str, list[Tensor]] = defaultdict(list)
    share_left: dict[str, float] = defaultdict(float)
    start = 0
    with Track(f"reliance on {pairs.split}", len(pairs.rows)) as track:
        for batch in batches(pairs.dataset, pairs.rows).epoch():
            others = {name: next(stream) for name, stream in streams.items()}
            noise = torch.from_numpy(rng.standard_normal(batch.saliency.shape, np.float32))
            offset = torch.from_numpy(pairs.offset[start : start + len(batch)])
            for name, image, share in alterations(batch, others, offset, noise, options):
                logits[name].append(predict(image, batch.saliency).float().cpu())
                share_left[name] += float(share.mean()) * len(batch) / len(pairs.rows)
            start += len(batch)
            track.advance(len(batch))
    return {name: torch.cat(parts).double().numpy() for name, parts in logits.items()}, dict(share_left)


def measure_reliance(
    predict: Predict,
    dataset: Dataset,
    batches: MakeBatches,
    options: RelianceOptions | None = None,
    *,
    types_seen: Collection[str] = (),
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Measure a network's reliance on the salient region on every test split; the result is ready for JSON.

    Subsets are those of ``evaluate``: all positives, and those of types seen and unseen in training, each against all
    measured negatives. Every condition is ``{"value", "low", "high", "difference"}``: AUROC of the margin, and its
    difference from ``whole`` on the same images, both with 95 % percentile bootstrap intervals (`Resampler`; a
    composite counts as an image of its salient region's group). `EFFECT` stands beside the conditions. What is
    undefined is null, and ``why`` says why.

    Args:
        predict: the network in evaluation mode.
        dataset: only its test splits are used, each with partners of its own.
        batches: makes batches as the network expects them.
        options: how composites are made.
        types_seen: the types that occurred in training.
        bootstrap: number of resamples; 0 gives no intervals.

    Raises:
        DataError: no test image has a map.
    """
    options = options or RelianceOptions()
    manifest = dataset.manifest
    everything = [pair_images(dataset, split, options) for split in manifest.test_splits]
    if not any(len(pairs.rows) for pairs in everything):
        raise DataError(
            f"{manifest.path}: no labelled image of a test split has a saliency map with a region above "
            f"{options.threshold:g}, so there is no reliance to measure; give maps to some"
        )
    splits: dict[str, dict[str, Any]] = {}
    found = []
    for pairs in everything:
        splits[pairs.split] = {"images": pairs.counts, "share_left": {}}
        if not len(pairs.rows):
            counts = {"positives": 0, "negatives": 0, "types": []}
            metrics = _all_undefined(f"no image of {pairs.split} has a map")
            found.append({"split": pairs.split, "name": "all", "kind": "all", **counts, "metrics": metrics})
            continue
        logits, splits[pairs.split]["share_left"] = predict_altered(predict, pairs, batches, options)
        scores = _scores(pairs, logits["whole"], types_seen)
        margins = {name: replace(scores, logits=one).margin(manifest.positive) for name, one in logits.items()}
        is_positive = scores.label == manifest.classes.index(manifest.positive)
        for name, kind, chosen in subsets(scores, is_positive):
            if kind != "type":
                rows = chosen | ~is_positive
                shown = {condition: margin[rows] for condition, margin in margins.items()}
                found.append(
                    {"split": pairs.split, "name": name, "kind": kind}
                    | _subset(scores.select(rows), is_positive[rows], shown, pairs.why, bootstrap, options.seed)
                )
    groups = any(manifest.group[row] for pairs in everything for row in pairs.rows)
    return {
        "positive": manifest.positive,
        "score": "margin",
        "options": options.model_dump(mode="json"),
        "bootstrap": {"resamples": bootstrap, "clustered_by_group": groups, "seed": options.seed},
        "splits": splits,
        "subsets": found,
    }


def _scores(pairs: Pairs, logits: NDArray[np.float64], types_seen: Collection[str]) -> Scores:
    manifest = pairs.dataset.manifest

    def text(values: list[str]) -> NDArray[Any]:
        return np.array(values, dtype=object)

    kinds = [manifest.type[row] for row in pairs.rows]
    return Scores(
        classes=manifest.classes,
        id=text([manifest.image[row] for row in pairs.rows]),
        split=text([pairs.split] * len(pairs.rows)),
        label=manifest.label[pairs.rows],
        type=text(kinds),
        type_seen=text(["" if not kind else "yes" if kind in types_seen else "no" for kind in kinds]),
        group=text([manifest.group[row] for row in pairs.rows]),
        logits=logits,
    )


def _subset(
    scores: Scores,
    is_positive: NDArray[np.bool_],
    margins: Mapping[str, NDArray[np.float64]],
    why: Mapping[str, str],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    positives = int(is_positive.sum())
    negatives = len(scores) - positives
    types = sorted(set(scores.type[is_positive]) - {""})
    counts = {"positives": positives, "negatives": negatives, "types": types}
    if not positives or not negatives:
        return counts | {
            "metrics": _all_undefined(f"no {'negatives' if positives else 'positives'} among the measured")
        }
    rankings = {name: Ranking(margin, is_positive) for name, margin in margins.items()}
    resampler = Resampler(is_positive, scores.group)
    alone = 1 in (resampler.of_positives, resampler.of_negatives)  # as in `evaluate`
    why_none = "a class has only one image or group" if alone else "no resamples were asked for"
    point = {name: ranking.rates().auroc() for name, ranking in rankings.items()}
    parts: dict[str, list[NDArray[np.float64]]] = {name: [np.empty(0)] for name in rankings}
    for weights in resampler.draw(0 if alone else bootstrap, seed):
        for name, ranking in rankings.items():
            parts[name].append(ranking.rates(weights).auroc())
    resamples = {name: np.concatenate(several) for name, several in parts.items()}

    def difference(a: str, b: str) -> dict[str, Any]:
        value = float(point[a][0] - point[b][0])
        return {"value": value} | interval(resamples[a] - resamples[b], why_none)

    metrics: dict[str, Any] = {}
    for name in CONDITIONS:
        if name in why:
            metrics[name] = _undefined(why[name])
        else:
            metrics[name] = {"value": float(point[name][0])} | interval(resamples[name], why_none)
            if name != "whole":
                metrics[name]["difference"] = difference(name, "whole")
    lacking = "; ".join(why[name] for name in ("background_same", "background_opposite") if name in why)
    metrics[EFFECT] = _undefined(lacking) if lacking else difference("background_same", "background_opposite")
    return counts | {"metrics": metrics}


def summary(result: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]], list[str]]]:
    """Yield for each test split, as text, a title, columns, rows and notes, from what `measure_reliance` returned."""

    def show(metric: Mapping[str, Any]) -> str:
        if metric["value"] is None:
            return f"undefined ({metric['why']})"
        texts = []
        for entry, form in ((metric, ".3f"), (metric.get("difference"), "+.3f")):
            if entry is not None:
                ends = "" if entry["low"] is None else f" [{entry['low']:{form}}, {entry['high']:{form}}]"
                texts.append(f"{entry['value']:{form}}{ends}")
        return "\n".join(texts)

    for split, about in result["splits"].items():
        found = [subset for subset in result["subsets"] if subset["split"] == split]
        found.sort(key=lambda subset: ("unseen", "seen", "all").index(subset["name"]))
        rows = []
        for name in (*CONDITIONS, EFFECT):
            share = about["share_left"].get(name)
            shown = "" if share is None else f"{100 * share:.0f} %"
            rows.append([name, shown, *(show(subset["metrics"][name]) for subset in found)])
        counts = [f"{s['name']}\n{s['positives']} / {s['negatives']}" for s in found]
        yield f"AUROC on {split}", ["", "left of\nthe image", *counts], rows, about_images(about["images"])


def about_images(counts: list[dict[str, Any]]) -> list[str]:
    """Return sentences on which images were measured, from the counts of a split."""
    sentences = []
    for class_ in dict.fromkeys(count["label"] for count in counts):
        own, lent, images = (
            sum(count[key] for count in counts if count["label"] == class_) for key in ("own_map", "lent_map", "images")
        )
        parts = [f"{own} with their own map" if own else "", f"{lent} with a map lent by another image" if lent else ""]
        text = f"{class_}: {' and '.join(filter(None, parts)) or 'none'} of {images} images"
        lost = [
            f"{count['images'] - count['own_map'] - count['lent_map']} {count['type'] or class_}"
            for count in counts
            if count["label"] == class_ and count["images"] > count["own_map"] + count["lent_map"]
        ]
        sentences.append(text + (f"; left out for want of a map or a partner: {', '.join(lost)}" if lost else ""))
    return sentences


def _undefined(why: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "why": why}


def _all_undefined(why: str) -> dict[str, Any]:
    return {name: _undefined(why) for name in (*CONDITIONS, EFFECT)}

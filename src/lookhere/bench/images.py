"""The report's pictures: the four views of example images, and the errors that a group is surest of."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from lookhere.bench.curves import roc_curves
from lookhere.bench.groups import Group
from lookhere.bench.resamples import Tested
from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.manifest import DataOptions, SaliencyOptions, read_manifest
from lookhere.data.protocol import ProtocolOptions, apply_protocol
from lookhere.errors import DataError, LookhereError
from lookhere.evaluation.scores import Scores
from lookhere.views import ViewOptions, saliency_views

SIDE = 160
"""Longest side of a picture in the report, in pixels."""
CONTOUR = (230, 159, 0)
EXAMPLES = 6
ERRORS = 6
VIEW_TITLES = (
    "image x",
    "saliency map",
    "salient region kept x̃",
    "degraded x′",
    "inverse map",
    "salient region degraded x̃′",
)
# Any backbone's normalisation is close to this; only the strength of `noise` depends on it.
MEAN, STD = 0.45, 0.225


@dataclass(frozen=True)
class Mistake:
    """A test image on the wrong side of the threshold."""

    id: str
    split: str
    label: str
    type: str
    score: float
    """Margin above the run's threshold, mean over the group's seeds."""


@dataclass(frozen=True)
class Evidence:
    """What the report takes from a group's predictions, so that one file at a time is in memory."""

    curves: dict[str, list[dict[str, np.ndarray]]]
    """By test split, the ROC curves of every run."""
    tested: list[dict[str, Tested]]
    """For every run, its test images by split."""
    false_positives: list[Mistake]
    false_negatives: list[Mistake]


def read_evidence(group: Group) -> Evidence:
    """Read the predictions of a group's runs: curves, margins, and the errors with the largest margins.

    The threshold of a run is its own, from ``val``; where that is undefined, a probability of 0.5 (margin 0).

    Raises:
        DataError: damaged predictions, or runs of one group (and fold) with different test images.
    """
    curves: dict[str, list[dict[str, np.ndarray]]] = {}
    tested: list[dict[str, Tested]] = []
    positive = group.result["positive"]
    firsts: dict[int, Scores] = {}
    totals: dict[int, Any] = {}
    for run in group.runs:
        fold = run.trial.fold
        scores = run.scores()
        test = scores.select(np.char.startswith(scores.split.astype(str), "test") & (scores.label >= 0))
        splits = sorted(set(test.split))
        for split in splits:
            curves.setdefault(split, []).append(roc_curves(test, positive, split))
        tested.append({split: Tested.of(test, positive, split) for split in splits})
        first = firsts.setdefault(fold, test)
        if not np.array_equal(first.id, test.id):
            raise DataError(
                f"{run.folder / 'predictions.csv'}: test images differ from those of {group.runs[0].folder}"
            )
        above = totals.get(fold, 0.0) + test.margin(positive)
        totals[fold] = above - (run.result["evaluation"]["threshold"]["value"] or 0.0)
    tests = [firsts[fold] for fold in totals]
    names, splits_of, labels, types = (
        np.concatenate([getattr(test, part) for test in tests]) for part in ("id", "split", "label", "type")
    )
    folds = [run.trial.fold for run in group.runs]
    margin = np.concatenate([total / folds.count(fold) for fold, total in totals.items()])
    classes = tests[0].classes
    is_positive = labels == classes.index(positive)

    def mistakes(rows: np.ndarray) -> list[Mistake]:
        surest = rows[np.argsort(-np.abs(margin[rows]), kind="stable")][:ERRORS]
        return [Mistake(names[i], splits_of[i], classes[labels[i]], types[i], float(margin[i])) for i in surest]

    return Evidence(
        curves,
        tested,
        mistakes(np.flatnonzero(~is_positive & (margin >= 0))),
        mistakes(np.flatnonzero(is_positive & (margin < 0))),
    )


def open_data(group: Group) -> Dataset | str:
    """Return the data that a group was trained on, or one sentence that says why it cannot be shown."""
    config = group.runs[0].config
    try:
        data, saliency = DataOptions(**config.get("data", {})), SaliencyOptions(**config.get("saliency", {}))
        manifest = read_manifest(data, saliency, need_val=False)
        manifest = apply_protocol(manifest, ProtocolOptions(**config.get("protocol", {})))
        dataset = load_dataset(data, saliency, manifest)
    except (LookhereError, ValidationError, OSError) as error:
        return f"The images are not shown, because the data cannot be read: {str(error).splitlines()[0]}"
    if dataset.sha256 != group.runs[0].data_sha256:
        return "The images are not shown, because the data has changed since the training."
    return dataset


def picture(dataset: Dataset, id: str) -> str | None:
    """Return an image with the outline of its map's salient part (at least half of the map's range), as a data URI."""
    if id not in dataset.manifest.image:
        return None
    row = dataset.manifest.image.index(id)
    index = dataset.map_index[row]
    saliency = None if index < 0 else dataset.maps[index]
    return _data_uri(dataset.images[row], outline=saliency)


def view_rows(dataset: Dataset, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return example images with the pictures of ``VIEW_TITLES``, as in Figure 2 of the paper, one image of each type.

    Args:
        dataset: the data of a run.
        options: the run's ``ViewOptions`` as a mapping.
    """
    rows = _examples(dataset)
    if not rows:
        return []
    images = torch.from_numpy(np.stack([dataset.images[row] for row in rows])).float() / 255
    images = (images.expand(-1, 3, -1, -1) - MEAN) / STD
    maps = torch.from_numpy(np.stack([dataset.maps[dataset.map_index[row]] for row in rows])).float()[:, None] / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        views = saliency_views(images, maps, ViewOptions(**options), black=-MEAN / STD)
    clean, kept, degraded, removed = (view * STD + MEAN for view in views)
    columns = [clean, maps, kept, degraded, 1 - maps, removed]
    manifest = dataset.manifest
    return [
        {
            "id": manifest.image[row],
            "type": manifest.type[row] or manifest.classes[manifest.label[row]],
            "split": manifest.split[row],
            "tiles": [_data_uri((column[i].clamp(0, 1) * 255).round().byte().numpy()) for column in columns],
        }
        for i, row in enumerate(rows)
    ]


def _examples(dataset: Dataset) -> list[int]:
    """Pick rows with a map, the first of each type; training images come first, since only their maps guide it."""
    with_map = np.flatnonzero(np.asarray(dataset.map_index) >= 0)
    with_map = with_map[np.argsort(np.asarray(dataset.manifest.split)[with_map] != "train", kind="stable")]
    first: dict[str, int] = {}
    for row in with_map:
        first.setdefault(dataset.manifest.type[row] or str(dataset.manifest.label[row]), int(row))
    return list(first.values())[:EXAMPLES]


def _data_uri(image: np.ndarray, outline: np.ndarray | None = None) -> str:
    """Encode a ``c h w`` uint8 image as JPEG; with an ``h w`` map, draw the line where it passes half of its range."""
    planes = np.moveaxis(image, 0, -1)
    pixels = Image.fromarray(planes[..., 0] if planes.shape[-1] == 1 else planes).convert("RGB")
    if outline is not None:
        pixels = pixels.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        inside = np.asarray(Image.fromarray(outline).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) >= 128
        edge = np.zeros_like(inside)
        edge[:-1] |= inside[:-1] != inside[1:]
        edge[:, :-1] |= inside[:, :-1] != inside[:, 1:]
        pixels = Image.fromarray(np.where(edge[..., None], np.array(CONTOUR, dtype=np.uint8), np.asarray(pixels)))
    pixels.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    pixels.save(file, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def pictures(dataset: Dataset | str, mistakes: Sequence[Mistake]) -> list[str | None]:
    """Return the picture of every mistake, None where the data cannot be shown."""
    return [None if isinstance(dataset, str) else picture(dataset, mistake.id) for mistake in mistakes]

"""Which test images reliance is measured on, with whose map, and on whose background each is pasted."""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookhere.data.cache import Dataset
from lookhere.evaluation.alterations import RelianceOptions, salient_level


@dataclass(frozen=True, eq=False)
class Pairs:
    """The ``n`` images of a test split that are measured, and what each is pasted on."""

    split: str
    dataset: Dataset
    """With the lent maps in place."""
    rows: NDArray[np.int64]
    """``n`` rows, in the order of the images' names."""
    partners: dict[str, NDArray[np.int64]]
    """By condition, the ``n`` rows whose backgrounds are taken; conditions that cannot be made are absent."""
    offset: NDArray[np.int64]
    """``n 2``: pixels by which the control's background is moved, down and to the right."""
    why: dict[str, str]
    """Why a condition cannot be made."""
    counts: list[dict[str, Any]]
    """For each class and type of the split: label, type, images, of which own_map and lent_map are measured."""


def pair_images(dataset: Dataset, split: str, options: RelianceOptions) -> Pairs:
    """Choose the images of a test split that are measured, lend maps, and draw what each is pasted on.

    Measured are the images whose map has a region, something above the threshold and something not; and, with
    ``unmapped = "borrow"``, the images of classes in which there is none, each with a map drawn from the others'. So
    the composites of all classes are made alike, and the trace of pasting cannot tell them apart. (An image without a
    map whose class has maps is left out: its salient region exists, and a lent map would miss it.)

    Partners are drawn uniformly from the measured images of the same split that are of another group (an image without
    a group is one of its own). An image for which there is none is left out of all conditions, or the condition is,
    where that is so for all images of a class. All draws depend on data, split and options alone.
    """
    manifest = dataset.manifest
    rng = np.random.default_rng((options.seed, zlib.crc32(split.encode())))
    rows = manifest.rows(split)
    rows = np.array(sorted(rows[manifest.label[rows] >= 0].tolist(), key=manifest.image.__getitem__), np.int64)
    own = np.array([_has_region(dataset, row, options) for row in rows], bool)
    lent = np.zeros_like(own)
    map_index = dataset.map_index.copy()
    if options.unmapped == "borrow" and own.any():
        lent = ~np.isin(manifest.label[rows], manifest.label[rows[own]])
        map_index[rows[lent]] = rng.choice(dataset.map_index[rows[own]], int(lent.sum()))
    measured = rows[own | lent]
    label = manifest.label[measured]
    group = np.unique([manifest.group[row] or f"\0{row}" for row in measured], return_inverse=True)[1]
    drawn = {
        "background_same": _draw(label, group, rng, same=True),
        "background_opposite": _draw(label, group, rng, same=False),
    }
    why: dict[str, str] = {}
    kept = np.ones(len(measured), bool)
    for name, partner in drawn.items():
        barren = [k for k in np.unique(label).tolist() if (partner[label == k] < 0).all()]
        if barren:
            kind = "the same class" if name == "background_same" else "another class"
            names = ", ".join(manifest.classes[k] for k in barren)
            why[name] = f"{names}: no image of {kind} and another group to paste on"
        else:
            kept &= partner >= 0
    signs = rng.choice([-1, 1], (len(measured), 2))
    return Pairs(
        split,
        replace(dataset, map_index=map_index),
        measured[kept],
        {name: measured[partner[kept]] for name, partner in drawn.items() if name not in why},
        (signs * round(options.shift * dataset.images.shape[-1]))[kept],
        why,
        _counts(dataset, rows, set(measured[kept].tolist()), set(rows[lent].tolist())),
    )


def _has_region(dataset: Dataset, row: int, options: RelianceOptions) -> bool:
    index = dataset.map_index[row]
    if index < 0:
        return False
    salient = dataset.maps[index] > salient_level(options)
    return bool(salient.any() and not salient.all())


def _draw(
    label: NDArray[np.int64], group: NDArray[np.int64], rng: np.random.Generator, *, same: bool
) -> NDArray[np.int64]:
    """Draw for each sample another one, of the same class or of another, and of another group; -1 where none is."""
    partner = np.full(len(label), -1, np.int64)
    for i in range(len(label)):
        allowed = np.flatnonzero(((label == label[i]) == same) & (group != group[i]))
        if len(allowed):
            partner[i] = allowed[rng.integers(len(allowed))]
    return partner


def _counts(dataset: Dataset, rows: NDArray[np.int64], measured: set[int], lent: set[int]) -> list[dict[str, Any]]:
    manifest = dataset.manifest
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows.tolist():
        count = counts[manifest.classes[manifest.label[row]], manifest.type[row]]
        count[0] += 1
        if row in measured:
            count[2 if row in lent else 1] += 1
    return [
        {"label": label, "type": kind, "images": images, "own_map": own, "lent_map": borrowed}
        for (label, kind), (images, own, borrowed) in sorted(counts.items())
    ]

"""Controls on maps: what training would be with maps that are reversed, wrong, empty of information, fewer or coarser.

Part of what guidance gains comes with any map, from the views and the extra terms: with reversed maps SAGE keeps about
40 % of its gain on irises (Crum & Czajka 2025, Table 3). These are the maps to compare with. They replace those that
training sees, in train and (for stages that learn to predict maps, which select by it) in val; evaluation never sees
them. The order is: ``fraction``, ``source``, ``reshape``; ``saliency.missing`` then fills what is left without a map.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from lookhere.data.cache import UNIFORM, Dataset
from lookhere.data.findings import counted, in_blocks
from lookhere.data.manifest import Reshape, SaliencyOptions
from lookhere.data.protocol import draw_share, kinds_of
from lookhere.errors import DataError


def control_maps(dataset: Dataset, options: SaliencyOptions, seed: int) -> Dataset:
    """Return a data set with the maps that training is to use in train and val, and none elsewhere.

    What is drawn depends on the data and the seed alone: every method sees the same maps, in every epoch. Only reshaped
    maps take memory, ``s * s`` bytes for each one that is used; the others are views of the decoded ones.

    Args:
        dataset: as decoded; returned as it is where nothing is to be changed.
        options: ``source``, ``fraction``, ``reshape`` and ``radius``.
        seed: of the training.

    Raises:
        DataError: maps that cannot be shuffled, or that are all constant once reshaped.
    """
    if options.source == "given" and options.fraction == 1 and options.reshape == "none":
        return dataset
    train, val = (dataset.rows(split, guided=True) for split in ("train", "val"))
    if options.fraction < 1 and len(train):
        kinds = np.unique(kinds_of(dataset.manifest)[train], return_inverse=True)[1]
        draws = np.random.default_rng([seed, *b"fraction"])
        labels = dataset.manifest.label[train]
        train = train[draw_share(labels, kinds, np.ones(len(train), np.int64), options.fraction, draws)]
    chosen = replace(dataset, map_index=np.full(len(dataset), -1, np.int64))
    for rows in (train, val):
        chosen.map_index[rows] = dataset.map_index[rows]
    if options.source == "uniform":
        chosen.map_index[[*train, *val]] = UNIFORM
        return chosen  # without a shape to change
    if options.source == "flipped":
        chosen = replace(chosen, flipped=True)
    elif options.source == "centre":
        chosen.map_index[[*train, *val]] = 0
        chosen = replace(chosen, maps=centred_map(dataset.images.shape[-1])[None], constant=np.zeros(1, bool))
    elif options.source == "shuffled":
        for split, rows in (("train", train), ("val", val)):
            draws = np.random.default_rng([seed, *b"shuffled", *split.encode()])
            other = derangement(dataset.map_index[rows], draws)
            if other is None and split == "train":
                raise DataError(_not_shuffled(dataset, rows))
            chosen.map_index[rows] = -1 if other is None else other
    return chosen if options.reshape == "none" else _reshaped(chosen, options)


def centred_map(side: int) -> np.ndarray:
    """Return a Gaussian in the middle of the image, 255 there, with a standard deviation of ``side / 4``; uint8."""
    distance = (np.arange(side) - (side - 1) / 2) / (side / 4)
    bell = np.exp(-(distance**2) / 2)
    return np.rint(255 * bell[:, None] * bell).astype(np.uint8)


def derangement(maps: np.ndarray, draws: np.random.Generator) -> np.ndarray | None:
    """Return the maps of ``n`` rows (int64; rows may share one) so exchanged that no row has its own.

    Rows are lined up at random, those that share a map side by side, and each takes the map that stands as many places
    further as the most shared map has rows. None if more than half of the rows share one: there is no such exchange.
    """
    if len(maps) == 0:
        return maps
    number, rows = np.unique(maps, return_inverse=True, return_counts=True)[1:]
    if 2 * rows.max() > len(maps):
        return None
    line = np.lexsort((draws.permutation(len(maps)), draws.permutation(len(rows))[number]))
    exchanged = np.empty_like(maps)
    exchanged[line] = np.roll(maps[line], -rows.max())
    return exchanged


def reshape_maps(maps: np.ndarray, how: Reshape, radius: int) -> np.ndarray:
    """Return maps ``m s s`` uint8 with their salient part grown, shrunk or replaced by its bounding box.

    ``dilate`` and ``erode`` are grey: the largest or smallest value within a square of ``2 * radius + 1`` pixels, the
    image's border being no value. ``box`` is 255 in the smallest upright rectangle around all that is above half of the
    map's maximum, and 0 outside.
    """
    if how == "box":
        high = maps > maps.max(axis=(1, 2), keepdims=True) // 2
        down, across = (_between(high.any(axis=axis)) for axis in (2, 1))
        return np.where(down[:, :, None] & across[:, None, :], np.uint8(255), np.uint8(0))
    choose = maximum_filter if how == "dilate" else minimum_filter
    return np.asarray(choose(maps, size=(1, 2 * radius + 1, 2 * radius + 1), mode="nearest"))


def _between(marked: np.ndarray) -> np.ndarray:
    """Return ``m s`` bool: true from the first to the last true of each row."""
    return np.logical_or.accumulate(marked, 1) & np.logical_or.accumulate(marked[:, ::-1], 1)[:, ::-1]


def _reshaped(dataset: Dataset, options: SaliencyOptions) -> Dataset:
    """Return a data set whose maps in use are reshaped, once and into memory; those without a shape then guide none."""
    rows = np.flatnonzero(dataset.map_index >= 0)
    used, index = np.unique(dataset.map_index[rows], return_inverse=True)
    maps = np.empty((len(used), *dataset.maps.shape[1:]), np.uint8)

    def reshape(block: slice) -> None:
        pixels = dataset.maps[used[block]]
        maps[block] = reshape_maps(255 - pixels if dataset.flipped else pixels, options.reshape, options.radius)

    for _ in in_blocks("reshaping maps", len(used), reshape):
        pass
    map_index = dataset.map_index.copy()
    map_index[rows] = index
    constant = maps.min(axis=(1, 2)) == maps.max(axis=(1, 2))
    reshaped = replace(dataset, maps=maps, map_index=map_index, constant=constant, flipped=False)
    before, after = (len(one.rows("train", guided=True)) for one in (dataset, reshaped))
    if after < before:
        lost = f"{before - after:,} of {counted(before, 'train map')} one value throughout, which guides nothing"
        text = f'saliency.reshape = "{options.reshape}" makes {lost}'
        if not after:
            hint = "boxes fill the image" if options.reshape == "box" else "lower saliency.radius"
            raise DataError(f"{dataset.manifest.path}: {text}: {hint}")
        warnings.warn(text, stacklevel=2)
    return reshaped


def _not_shuffled(dataset: Dataset, rows: np.ndarray) -> str:
    files = Counter(dataset.manifest.saliency[row] for row in rows)
    (file, most), found = files.most_common(1)[0], counted(len(rows), "train row")
    why = f"{most} share '{file}'" if most > 1 else "it needs another"
    return (
        f'{dataset.manifest.path}: saliency.source = "shuffled" gives each image the map of another, but of {found} '
        f"with a map {why}; expected two or more, of which no map has more than half"
    )

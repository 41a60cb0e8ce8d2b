"""Finds saliency maps that guide nothing or wrongly: constant ones, inverted ones, missing ones, sizes that differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookhere.data.cache import Dataset
from lookhere.data.decode import upright_size
from lookhere.data.findings import Example, Finding, counted, in_blocks
from lookhere.errors import DataError

HIGH_COVERAGE = 0.8
"""Mean value above which a map looks inverted: people mark less than that of what they look at."""
BRIGHT_FRAME = 0.8
"""Mean value of the outermost pixels; with more than half of the image covered, the map looks inverted too."""
TINY = 16


@dataclass(frozen=True)
class MapStatistics:
    """Of ``m`` maps."""

    coverage: np.ndarray
    """Mean value in [0, 1]."""
    frame: np.ndarray
    """Mean value of the outermost pixels, a 32nd of the side wide."""
    constant: np.ndarray
    """bool: one value throughout."""

    @property
    def inverted(self) -> np.ndarray:
        """Bool: looks as if black were salient."""
        bright = (self.coverage > HIGH_COVERAGE) | (self.frame > BRIGHT_FRAME) & (self.coverage > 0.5)
        return bright & ~self.constant


def map_statistics(maps: np.ndarray) -> MapStatistics:
    """Return the statistics of ``m s s`` uint8 maps, on all cores."""
    inner = slice(edge := max(maps.shape[-1] // 32, 1), -edge)
    ring = maps.shape[-1] ** 2 - (maps.shape[-1] - 2 * edge) ** 2

    def measure(block: slice) -> np.ndarray:
        pixels = np.asarray(maps[block])
        total = pixels.sum(axis=(1, 2), dtype=np.int64)
        frame = total - pixels[:, inner, inner].sum(axis=(1, 2), dtype=np.int64)
        constant = pixels.min(axis=(1, 2)) == pixels.max(axis=(1, 2))
        return np.stack([total / pixels[0].size / 255, frame / ring / 255, constant])

    parts = list(in_blocks("comparing maps", len(maps), measure))
    coverage, frame, constant = np.concatenate([np.zeros((3, 0)), *parts], axis=1)
    return MapStatistics(coverage, frame, constant.astype(bool))


def map_findings(dataset: Dataset, statistics: MapStatistics) -> list[Finding]:
    """Return constant, inverted-looking and missing maps."""
    return [*_missing(dataset), *_constant(dataset, statistics), *_inverted(dataset, statistics)]


def _rows(dataset: Dataset, maps: np.ndarray) -> list[int]:
    """Return the rows of the maps (bool), those with the first occurrence of a shared map only."""
    chosen = np.flatnonzero(np.append(maps, False)[dataset.map_index])
    return chosen[np.unique(dataset.map_index[chosen], return_index=True)[1]].tolist()


def _missing(dataset: Dataset) -> Iterator[Finding]:
    manifest = dataset.manifest
    train = manifest.rows("train")
    without = train[dataset.map_index[train] < 0]
    if len(without) == 0:
        return
    if len(without) == len(train):
        text = "no train image has a map, so nothing guides a training: name a saliency column or set saliency.folder"
        yield Finding("missing maps", "warning", text)
        return
    bare = [
        name
        for i, name in enumerate(manifest.classes)
        if (manifest.label[train] == i).any() and not (dataset.map_index[train[manifest.label[train] == i]] >= 0).any()
    ]
    classes = f", among them all of {', '.join(bare)}" if bare else ""
    text = f"{len(without):,} of {counted(len(train), 'train image')} without a map{classes}: guidance skips them"
    yield Finding("missing maps", "note", text)


def _constant(dataset: Dataset, statistics: MapStatistics) -> Iterator[Finding]:
    rows = _rows(dataset, statistics.constant)
    if rows:
        values = statistics.coverage[dataset.map_index[rows]]
        examples = [
            Example((row,), "all zero: nothing is marked" if value == 0 else f"one value throughout ({value:.2f})")
            for row, value in zip(rows, values, strict=True)
        ]
        text = (
            f"{counted(len(rows), 'map')} with one value throughout, which guide nothing: draw them or leave them out"
        )
        yield Finding("constant maps", "warning", text, tuple(examples))


def _inverted(dataset: Dataset, statistics: MapStatistics) -> Iterator[Finding]:
    rows = _rows(dataset, statistics.inverted)
    if not rows:
        return
    rows.sort(key=lambda row: -statistics.coverage[dataset.map_index[row]])
    examples = tuple(Example((row,), f"covers {statistics.coverage[dataset.map_index[row]]:.0%}") for row in rows)
    total = len(statistics.coverage)
    if 2 * len(rows) > total:
        text = (
            f"{len(rows):,} of {counted(total, 'map')} cover most of their image, up to its edges; expected white = "
            "salient (is their polarity inverted?)"
        )
    else:
        text = f"{counted(len(rows), 'map')} unlike the others: they look inverted (white = not salient?); look at them"
    yield Finding("inverted maps", "warning", text, examples)


def size_findings(dataset: Dataset) -> list[Finding]:
    """Return images too small to show anything, smaller than the network's input, and maps of other sizes."""
    manifest = dataset.manifest

    def sizes(block: slice) -> np.ndarray:
        found = []
        for row in range(block.start, block.stop):
            size = _size(manifest.image_path(row))
            path = manifest.saliency_path(row)
            found.append((size, size if path is None else _size(path)))
        return np.array(found, np.int64)

    images, maps = np.concatenate(list(in_blocks("reading sizes", len(dataset), sizes))).transpose(1, 0, 2)
    short = images.min(axis=1)
    found = []

    def examples(chosen: np.ndarray) -> tuple[Example, ...]:
        return tuple(Example((row,), _sizes(images[row], maps[row])) for row in np.flatnonzero(chosen).tolist())

    if tiny := examples(short < TINY):
        text = f"{counted(len(tiny), 'image')} of fewer than {TINY} pixels a side: export them again, or leave them out"
        found.append(Finding("tiny images", "warning", text, tiny))
    if other := examples((images != maps).any(axis=1)):
        text = f"{counted(len(other), 'map')} of another size and the same aspect ratio: resized as its image is"
        found.append(Finding("maps of another size", "note", text, other))
    side = dataset.images.shape[-1]
    smaller = int((short < side).sum())
    if 2 * smaller > len(images):
        text = (
            f"{smaller:,} of {counted(len(images), 'image')} enlarged to data.size = {side}: the usual one has "
            f"{int(np.median(short))} pixels a side"
        )
        found.append(Finding("enlarged images", "note", text))
    return found


def _size(path: Path) -> tuple[int, int]:
    try:
        return upright_size(path)
    except DataError:  # changed since it was decoded
        return 0, 0


def _sizes(image: np.ndarray, drawn: np.ndarray) -> str:
    shown = f"{image[0]} x {image[1]}"
    return shown if (image == drawn).all() else f"map {drawn[0]} x {drawn[1]}, image {shown}"

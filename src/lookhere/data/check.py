"""Checks a data set to its last pixel, before a training is spent on it: ``lookhere check manifest.csv``."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from lookhere.data.cache import Dataset, load_dataset
from lookhere.data.manifest import Count, DataOptions, Manifest, SaliencyOptions
from lookhere.errors import DataError

HIGH_COVERAGE = 0.8
BLOCK = 256


@dataclass(frozen=True)
class Summary:
    """What a data set holds."""

    classes: tuple[str, ...]
    positive: str
    positive_reason: str
    counts: list[Count]
    images: int
    without_map: int
    constant_maps: int
    coverage: float | None
    """Mean over all maps of their mean value, in [0, 1]; None without maps."""
    sha256: str
    """Identity of the data."""
    warnings: list[str]

    def lines(self) -> list[str]:
        """Return the summary as text for a terminal."""
        rows = [("split", "label", "type", "images", "maps"), *[tuple(map(str, count)) for count in self.counts]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        coverage = "" if self.coverage is None else f", mean coverage {self.coverage:.1%}"
        return [
            *table,
            f"{self.images} images, {self.without_map} without a map, {self.constant_maps} constant maps{coverage}",
            f"classes: {', '.join(self.classes)}; positive: {self.positive} ({self.positive_reason})",
            f"sha256: {self.sha256}",
            *[f"warning: {warning}" for warning in self.warnings],
        ]


def check(data: DataOptions, saliency: SaliencyOptions) -> Summary:
    """Decode every image and map of a manifest and summarise what it holds.

    Raises:
        DataError: all problems of the manifest; or all of its files; or images whose decoded pixels are in train or val
            and in another split too, under whatever name (leakage).
    """
    dataset = load_dataset(data, saliency)
    manifest = dataset.manifest
    warnings = [*manifest.warnings, *_repeated_pixels(dataset)]
    coverage = _coverage(dataset.maps)
    high = int((coverage > HIGH_COVERAGE).sum())
    if 2 * high > len(coverage):
        warnings.append(
            f"{high} of {len(coverage)} maps cover more than {HIGH_COVERAGE:.0%} of their image; expected white = "
            "salient (is their polarity inverted?)"
        )
    if dataset.constant_maps:
        warnings.append(f"{dataset.constant_maps} maps have one value throughout, and guide nothing")
    return Summary(
        classes=manifest.classes,
        positive=manifest.positive,
        positive_reason=manifest.positive_reason,
        counts=manifest.counts(),
        images=len(manifest),
        without_map=int((dataset.map_index < 0).sum()),
        constant_maps=dataset.constant_maps,
        coverage=float(coverage.mean()) if len(coverage) else None,
        sha256=dataset.sha256,
        warnings=warnings,
    )


def _coverage(maps: np.ndarray) -> np.ndarray:
    blocks = (maps[start : start + BLOCK] for start in range(0, len(maps), BLOCK))
    return np.concatenate([np.zeros(0), *[block.mean(axis=(1, 2)) / 255 for block in blocks]])


def _repeated_pixels(dataset: Dataset) -> list[str]:
    """Return warnings of images that are pixel for pixel those of another row with another name.

    Raises:
        DataError: such a pair lies across splits, of which one is train or val.
    """
    manifest = dataset.manifest
    first: dict[bytes, int] = {}
    problems = []
    within: Counter[str] = Counter()
    for row, pixels in enumerate(dataset.images):
        other = first.setdefault(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), row)
        if other == row or manifest.image_file[other] == manifest.image_file[row]:
            continue
        if _leaks(manifest, row, other):
            here = f"'{manifest.image[row]}' ({manifest.split[row]})"
            there = f"'{manifest.image[other]}' ({manifest.split[other]}, row {manifest.line[other]})"
            problems.append(
                f"{manifest.where(row, 'image')}: {here} has the same pixels as {there}; expected one split"
            )
        else:
            within[str(manifest.split[row])] += 1
    if problems:
        raise DataError(problems)
    return [f"{manifest.path}: {n} images of {split} repeat the pixels of another file" for split, n in within.items()]


def _leaks(manifest: Manifest, row: int, other: int) -> bool:
    splits = {str(manifest.split[row]), str(manifest.split[other])}
    return len(splits) > 1 and not all(split.startswith("test") for split in splits)

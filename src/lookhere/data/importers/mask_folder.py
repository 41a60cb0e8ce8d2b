"""Folders of masks, one for each image under the same name: painted strokes, segmentations, grey maps.

A mask's pixels do not say by themselves what they mean. In an 8-bit grey file 255 is white, but so may be 1; a palette
file holds indices whose colours are arbitrary; a stroke drawn on a transparent layer is its alpha channel, and the
transparent rest of that layer may well be white. What a file is read as follows from its kind where that decides it,
is counted in the provenance, and is otherwise asked for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from lookhere.data.decode import DEEP, GREY, map_values, read
from lookhere.data.importers.base import Importer, LabelledOptions, Ledger, Sample, image_lookup, labelled_images
from lookhere.data.importers.labels import image_files
from lookhere.data.importers.lookup import short_names, without_suffix
from lookhere.data.importers.maps import MapMaker, fitted
from lookhere.errors import DataError

FAINT = 31
"""Up to this value, an 8-bit grey file may be a faint map or hold the numbers of classes; a palette file with more
colours may be a heat map."""

COLOURED = (
    'a coloured file; set values = "index" if any colour but black is salient, or values = "colour-map" if it is a '
    "heat map"
)


class MaskFolderOptions(LabelledOptions):
    """Options of folders of masks."""

    suffix: str = ""
    """What follows the image's name in its mask's, such as "_mask"."""
    values: Literal["auto", "intensity", "index", "alpha", "colour-map"] = "auto"
    """What salient means: brightness, any value but 0 (or those of ``only``), any opacity, or the value that a colour
    stands for in viridis and other colour maps that can be read back."""
    only: tuple[int, ...] = ()
    """Indices that are salient; by default all but 0."""
    white: int | None = Field(None, ge=1, le=65_535)
    """Brightness that is fully salient; by default 255, and 65535 in 16-bit files."""
    invert: bool = False
    """The salient part is black."""


def read_masks(paths: Sequence[Path], options: MaskFolderOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images of ``options.images`` with their masks; each path is the folder of one annotator."""
    samples = labelled_images(options, ledger)
    masks = [list(_masks(folder, options.suffix, ledger)) for folder in paths]
    # Masks may lie beside their images, told apart by the suffix alone.
    real = {os.path.realpath(file) for files in masks for file, _ in files}
    samples = [sample for sample in samples if os.path.realpath(sample.image) not in real]
    if not samples and real:
        raise DataError(f"{options.images}: every image in it is a mask; expected other files, or the option suffix")
    made: dict[str, list[tuple[str, MapMaker]]] = {sample.name: [] for sample in samples}
    observers = short_names(paths)
    kinds: Counter[str] = Counter()
    lock = Lock()
    for folder, files in zip(paths, masks, strict=True):
        lookup = image_lookup(samples, options)
        taken: dict[str, Path] = {}
        for file, name in files:
            try:
                sample = lookup.find(name)
            except DataError as error:
                ledger.problems.append(f"{file}: {error}")
                continue
            if sample is None:
                ledger.drop("mask without an image of its name", str(file))
            elif sample.name in taken:
                ledger.problems.append(f"{file}: '{sample.name}' has the mask {taken[sample.name]} too; expected one")
            else:
                taken[sample.name] = file
                made[sample.name].append((observers[folder], _maker(file, options, kinds, lock)))
    if not any(made.values()) and not ledger.problems:
        what = f" followed by '{options.suffix}'" if options.suffix else ""
        ledger.problems.append(f"{', '.join(map(str, paths))}: no mask has the name of an image{what}")
    ledger.facts.update(observers=len(paths), masks_read_as=kinds)
    for sample in samples:
        own = made[sample.name]
        yield replace(sample, maps=tuple(maker for _, maker in own), observers=tuple(name for name, _ in own))


def mask_values(image: Image.Image, options: MaskFolderOptions) -> tuple[np.ndarray, str]:
    """Return how salient each pixel of a mask is (``h w`` float32 in [0, 1]) and what it was read as.

    Raises:
        DataError: what its values mean cannot be told, or contradicts the options.
    """
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if options.values == "alpha" or (options.values == "auto" and alpha.min() < 255):
            return np.asarray(alpha > 0, np.float32), "strokes: alpha above 0"
    if options.values == "alpha":
        raise DataError(f'values = "alpha", but this is a file of mode {image.mode} without transparency')
    if image.mode == "1":
        return np.asarray(image, np.float32), "1 bit"
    if image.mode in DEEP:
        return _grey(np.asarray(image).astype(np.int64), 65_535, 255, options)
    if image.mode in GREY:
        return _grey(np.asarray(image.convert("L")).astype(np.int64), 255, FAINT, options)
    if options.values == "colour-map":
        return map_values(image, "invert") / np.float32(255), "colour map"
    colours = np.asarray(image.convert("RGB")).astype(np.int64)
    coloured = (colours != colours[..., :1]).any()
    if image.mode == "P" and (coloured or options.values == "index"):
        if options.values == "intensity":
            raise DataError('a palette file whose colours are no brightness; expected values = "index"')
        if options.values == "auto" and len(np.unique(np.asarray(image))) > FAINT:
            raise DataError(COLOURED)
        return _index(np.asarray(image), options)
    if options.values == "index" and not options.only:
        return np.asarray(colours.any(axis=2), np.float32), "colour: any but black"
    if coloured:
        raise DataError(COLOURED)
    return _grey(colours[..., 0], 255, FAINT, options)


def _grey(values: np.ndarray, white: int, faint: int, options: MaskFolderOptions) -> tuple[np.ndarray, str]:
    peak = int(values.max())
    if options.values == "index" or (options.values == "auto" and options.white is None and peak == 1):
        return _index(values, options)
    if options.values == "auto" and options.white is None and 1 < peak <= faint:
        raise DataError(
            f"its brightest value is {peak} of {white}: numbers of classes, or a faint map? "
            f'Set values = "index", values = "intensity", or white = {peak if white == 255 else 255}'
        )
    top = options.white or white
    if values.min() < 0 or peak > top:
        raise DataError(f"values from {values.min()} to {peak}; expected 0 to {top} (option white)")
    return np.asarray(values / top, np.float32), f"intensity: {top} is fully salient"


def _index(values: np.ndarray, options: MaskFolderOptions) -> tuple[np.ndarray, str]:
    if options.only:
        return np.isin(values, options.only).astype(np.float32), f"index: {', '.join(map(str, options.only))}"
    return np.asarray(values != 0, np.float32), "index: any but 0"


def _masks(folder: Path, suffix: str, ledger: Ledger) -> Iterator[tuple[Path, str]]:
    """Yield each mask with the name of its image."""
    for file in image_files(folder):
        name = without_suffix(file)
        if name.endswith(suffix):
            yield folder / file, name.removesuffix(suffix)
        else:
            ledger.drop(f"name without '{suffix}'", str(folder / file))


def _maker(file: Path, options: MaskFolderOptions, kinds: Counter[str], lock: Lock) -> MapMaker:
    def make(width: int, height: int) -> np.ndarray:
        try:
            saliency, kind = mask_values(read(file), options)
            saliency = fitted(1 - saliency if options.invert else saliency, width, height)
        except DataError as error:
            raise DataError(f"its mask {file}: {error}") from None
        with lock:
            kinds[kind] += 1
        return saliency

    return make


def _example(folder: Path) -> None:
    """Write twelve images of two classes, with masks of one annotator as strokes and of another as grey PNG."""
    random = np.random.default_rng(0)
    for i in range(12):
        kind, centre = ("bonafide", "attack")[i % 2], random.integers(12, 36, 2)
        box = [*(centre - 8).tolist(), *(centre + 8).tolist()]
        image = Image.fromarray(random.integers(60, 120, (48, 48), np.uint8))
        ImageDraw.Draw(image).ellipse(box, fill=200 if i % 2 else 30)
        strokes, grey = Image.new("RGBA", (48, 48), (255, 255, 255, 0)), Image.new("L", (48, 48))
        ImageDraw.Draw(strokes).ellipse(box, fill=(0, 255, 0, 85))
        ImageDraw.Draw(grey).rectangle(box, fill=255)
        for name, picture in (("images", image), ("first", strokes), ("second", grey)):
            place = folder / name / kind
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{i:02d}.png")


IMPORTERS = (
    Importer(
        name="mask-folder",
        title="Folders of masks, one PNG for each image",
        request="Your own files: masks painted or segmented with any tool, named as the images are.",
        licence="That of your data.",
        Options=MaskFolderOptions,
        read=read_masks,
        example=_example,
        example_arguments=("{folder}/first", "{folder}/second", "--set", "images={folder}/images"),
    ),
)

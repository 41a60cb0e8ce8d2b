"""Reads the images of a source, and writes images and maps as the manifest's readers expect them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from lookhere.data import dicom
from lookhere.data.decode import DEEP, FORMATS, GREY, image_pixels, read
from lookhere.data.files import EXTENSIONS
from lookhere.errors import DataError

IMAGES = (*EXTENSIONS, *dicom.SUFFIXES)
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
Merge = Literal["mean", "union", "agreement"]


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the upright image from the file's header alone.

    Raises:
        DataError: the file cannot be opened as an image; the reason only.
    """
    if path.suffix.lower() in dicom.SUFFIXES:
        return dicom.dicom_size(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(0x0112) in TRANSPOSED else (width, height)
    except Exception:
        read(path)  # says what is wrong in the words used elsewhere
        raise


def read_image(path: Path, window: int = 0) -> tuple[Image.Image, dicom.Rendering | None]:
    """Return the upright image, and how it was rendered if it is DICOM (16-bit grey).

    Raises:
        DataError: see ``decode.read`` and ``dicom.read_dicom``; also for what training would refuse: transparency.
    """
    if path.suffix.lower() in dicom.SUFFIXES:
        pixels, rendering = dicom.read_dicom(path, window)
        return Image.fromarray(pixels), rendering
    image = read(path)
    image_pixels(image, size=16)
    return image, None


def write_image(image: Image.Image, source: Path, target: Path, box: tuple[int, int, int, int] | None) -> str:
    """Write an image, or what ``box`` cuts of it, at ``target`` plus a suffix, which is returned.

    A file that can be used as it is becomes a hard link, or a copy where links are not possible. Where the box leaves
    the image, it is black.
    """
    suffix = source.suffix.lower()
    if box is None and suffix in EXTENSIONS:
        link_or_copy(source, target.with_name(target.name + suffix))
        return suffix
    if image.mode in DEEP:
        pixels = np.asarray(image).astype(np.uint16)
    else:  # modes in which 0 is black and opaque: in a palette or CMYK it may be any colour
        pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).crop(box).save(target.with_name(target.name + ".png"), format="PNG")
    return ".png"


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to the file ``source``, or a copy where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    original = os.path.realpath(source)
    try:
        os.link(original, target)
    except OSError:
        shutil.copyfile(original, target)


def check_crop(crop: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """Refuse a crop (left, top, right, bottom) that has no pixel of an image of ``size``, or fills the memory.

    Raises:
        DataError: it is such a crop.
    """
    left, top, right, bottom = crop
    if max(left, 0) >= min(right, size[0]) or max(top, 0) >= min(bottom, size[1]):
        raise DataError(f"the crop {crop} has no pixel of the image of {size[0]} x {size[1]} pixels")
    limit = Image.MAX_IMAGE_PIXELS
    if limit and (right - left) * (bottom - top) > limit:
        raise DataError(f"the crop {crop} has {right - left} x {bottom - top} pixels; the limit is {limit:,} in all")


def crop_map(saliency: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the part of a map (``h w`` float32) in a box (left, top, right, bottom), 0 where that leaves the map."""
    return np.asarray(Image.fromarray(saliency).crop(box))


def merge_maps(maps: Iterable[np.ndarray], how: Merge) -> np.ndarray:
    """Return one map of the maps of several annotators, one of which is in memory at a time.

    Args:
        maps: ``h w`` float32 in [0, 1], at least one.
        how: ``mean``; ``union``, their maximum; ``agreement``, 1 where at least half of them have more than 0.5.

    Returns:
        ``h w`` float32 in [0, 1].
    """
    merged: np.ndarray | None = None
    count = 0
    for one in maps:
        count += 1
        part = (one > 0.5).astype(np.float32) if how == "agreement" else one
        if merged is None:
            merged = part.copy()
        elif how == "union":
            np.maximum(merged, part, out=merged)
        else:
            merged += part
    if merged is None:
        raise ValueError("no maps to merge")
    if how == "agreement":
        return np.asarray(2 * merged >= count, np.float32)
    return merged / count if how == "mean" else merged


def write_map(saliency: np.ndarray, bits: Literal[8, 16], path: Path) -> None:
    """Write ``h w`` float32 in [0, 1] as grey PNG, white = 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    white, kind = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    Image.fromarray(np.rint(saliency * white).astype(kind)).save(path, format="PNG")

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
from lookhere.data.decode import DEEP, FORMATS, image_pixels, read
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
    """Write an image at ``target`` plus a suffix, which is returned.

    A file that can be used as it is becomes a hard link, or a copy where links are not possible.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = source.suffix.lower()
    if box is None and suffix in EXTENSIONS:
        place = target.with_name(target.name + suffix)
        original = os.path.realpath(source)
        try:
            os.link(original, place)
        except OSError:
            shutil.copyfile(original, place)
        return suffix
    if image.mode in DEEP:
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif image.mode in ("CMYK", "YCbCr"):
        image = image.convert("RGB")
    image.crop(box).save(target.with_name(target.name + ".png"), format="PNG")
    return ".png"


def crop_box(crop: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part of a crop (left, top, right, bottom) that lies in an image of ``size``.

    Raises:
        DataError: no pixel of it does.
    """
    box = max(crop[0], 0), max(crop[1], 0), min(crop[2], size[0]), min(crop[3], size[1])
    if box[0] >= box[2] or box[1] >= box[3]:
        raise DataError(f"the crop {crop} has no pixel of the image of {size[0]} x {size[1]} pixels")
    return box


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

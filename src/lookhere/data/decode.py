"""Decodes images and saliency maps, and refuses what it cannot read faithfully.

Known traps that this avoids: 16-bit files clipped at 255 by ``convert("L")``; rotation in EXIF applied to the image and
not to its map; truncated files that pass ``verify``; coloured heat maps read as grey; 0/0 in the min-max of a constant
map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lookhere.data.colour_maps import values_of
from lookhere.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
EIGHT_BIT = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
GREY = ("1", "L", "LA", *DEEP)
MAX_SIDE = 2**16 - 1
"""Pixels, the most that JPEG and DICOM can hold; what is longer, a line of 80,000 x 1, is no picture."""

MapState = Literal["ok", "constant"]
Normalise = Literal["min-max", "none"]
ColourMap = Literal["refuse", "invert"]


def channels(path: Path) -> int:
    """Return 1 for a grey image and 3 for any other, from the file's header alone.

    Raises:
        DataError: as ``read`` does, except for damage after the header.
    """
    with _opened(path) as image:
        return 1 if image.mode in GREY else 3


def upright_size(path: Path) -> tuple[int, int]:
    """Return width and height after EXIF orientation, from the file's header alone.

    Raises:
        DataError: as ``channels``.
    """
    with _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


def read(path: Path, bit_depth: int = 16) -> Image.Image:
    """Return an image decoded to its end and turned upright by its EXIF orientation, in its own mode.

    Raises:
        DataError: the file is missing, damaged, too large, of another format, of several pages, or of a kind of pixel
            that cannot be read faithfully. The message has the reason only: the caller knows file, row and column.
    """
    with _opened(path) as image:
        if bit_depth < 16 and image.mode not in DEEP and ";16" in str(getattr(image, "tile", "")):
            raise DataError("16-bit colour with data.bit_depth below 16; save it as 16-bit grey or as 8-bit colour")
        image.load()
        return ImageOps.exif_transpose(image)


def decode_image(path: Path, size: int, bit_depth: int = 16) -> np.ndarray:
    """Decode an image and squash it to ``size`` x ``size``.

    Args:
        path: PNG, JPEG, TIFF or BMP.
        size: side in pixels.
        bit_depth: bits used in 16-bit files; ``2**bit_depth - 1`` becomes 255.

    Returns:
        ``c size size`` uint8, c = 1 for grey images and 3 (RGB) for others.

    Raises:
        DataError: see ``read``; also for a value above the bit depth and for transparent pixels.
    """
    return image_pixels(read(path, bit_depth), size, bit_depth)


def decode_map(
    path: Path, size: int, normalise: Normalise = "min-max", colour_map: ColourMap = "refuse"
) -> tuple[np.ndarray, MapState]:
    """Decode a saliency map and squash it to ``size`` x ``size``.

    Args:
        path: PNG, JPEG, TIFF or BMP, grey: brighter = more salient.
        size: side in pixels.
        normalise: ``min-max`` stretches the resized map to [0, 255]; a constant map has nothing to stretch and keeps
            its value, as every map does with ``none``.
        colour_map: what to do with a heat map in the colours of viridis or another monotone colour map.

    Returns:
        ``size size`` uint8, and whether the map was constant.

    Raises:
        DataError: see ``read``; also for a coloured heat map, unless its values are to be and can be read back.
    """
    return map_pixels(read(path), size, normalise, colour_map)


def image_pixels(image: Image.Image, size: int, bit_depth: int = 16) -> np.ndarray:
    """Do what ``decode_image`` does after reading."""
    image = _opaque(image)
    if image.mode in DEEP:
        # Resized in float, so that 16 bits are rounded to 8 once, at the end.
        pixels = np.asarray(_resized(Image.fromarray(_deep(image, bit_depth)), size))
        return np.rint(pixels).astype(np.uint8)[None]
    pixels = np.asarray(_resized(image.convert("L" if image.mode in GREY else "RGB"), size))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def map_pixels(
    image: Image.Image, size: int, normalise: Normalise = "min-max", colour_map: ColourMap = "refuse"
) -> tuple[np.ndarray, MapState]:
    """Do what ``decode_map`` does after reading."""
    grey = map_values(image, colour_map)
    constant = bool(grey.min() == grey.max())
    resized = np.asarray(_resized(Image.fromarray(grey), size))
    low, high = resized.min(), resized.max()
    if normalise == "min-max" and not constant and high > low:
        resized = (resized - low) * (255 / (high - low))
    return np.rint(resized).astype(np.uint8), "constant" if constant else "ok"


def map_values(image: Image.Image, colour_map: ColourMap = "refuse") -> np.ndarray:
    """Return the values of a map as ``h w`` float32 in [0, 255]; see ``decode_map``."""
    image = _opaque(image)
    if image.mode in DEEP:
        return _deep(image, 16)
    if image.mode in GREY:
        return np.asarray(image.convert("L"), np.float32)
    colours = np.asarray(image.convert("RGB"))
    if (colours != colours[..., :1]).any():
        return values_of(colours, colour_map == "invert")
    return colours[..., 0].astype(np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        # Given a path, Pillow 13 maps the file into memory and scrambles a TIFF that is to be turned by 90 degrees.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                raise DataError(f"{image.width} x {image.height} pixels; the limit is {limit:,} pixels in all")
            if max(image.size) > MAX_SIDE:
                raise DataError(f"{image.width} x {image.height} pixels; the limit is {MAX_SIDE:,} pixels a side")
            # An MPO is a photograph with previews behind it, and the photograph comes first.
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":
                raise DataError(f"{pages} pages; expected a file with one image")
            if image.mode == "F":
                raise DataError("floating-point pixels, which have no known range; save it with 8 or 16 bits")
            if image.mode not in EIGHT_BIT and image.mode not in DEEP:
                raise DataError(f"pixels of mode {image.mode}; expected grey, RGB, palette or CMYK")
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        what = "empty (0 bytes)" if path.stat().st_size == 0 else "not a readable image"
        raise DataError(f"{what}; expected {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(str(error).split(",")[0]) from None
    except (
        Exception
    ) as error:  # Pillow's readers raise about anything on damaged files: OSError, SyntaxError, struct.error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise DataError(f"cannot be decoded ({reason})") from None


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image without its alpha channel, which must hide nothing."""
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image
    colours = image.convert("RGBA")
    if colours.getchannel("A").getextrema()[0] != 255:
        raise DataError("transparent pixels; save it without an alpha channel")
    return colours.convert("L" if image.mode in GREY else "RGB")


def _deep(image: Image.Image, bit_depth: int) -> np.ndarray:
    """Return the values of a 16-bit image as float32 in [0, 255]."""
    values = np.asarray(image)
    white = 2**bit_depth - 1
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise DataError(f"values from {low} to {high}; expected 0 to {white} (data.bit_depth = {bit_depth})")
    return (values.astype(np.float64) * (255 / white)).astype(np.float32)


def _resized(image: Image.Image, size: int) -> Image.Image:
    """Return the image at ``size`` x ``size``; Pillow's bilinear filter widens when shrinking, so it does not alias."""
    return image.resize((size, size), Image.Resampling.BILINEAR)

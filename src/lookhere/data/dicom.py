"""Renders a DICOM radiograph to the grey levels that a radiologist is shown, without guessing any of them.

The order of the steps is DICOM's (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2; PS3.4 N.2): modality LUT or rescale, VOI LUT or
window, inversion of MONOCHROME1, padding, scaling by the *possible* range. Dividing by the brightest pixel found, as
much code does, makes brightness depend on what is in the picture.

Each step maps one stored value to one grey level, so the whole chain is worked out once for every value that can be
stored (at most 65,536) and then looked up. The steps are not pydicom's own functions: its VOI LUT of 8 bits wraps at
256 entries, its modality LUT has 8 or 16 bits only, and nothing in it inverts MONOCHROME1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lookhere.errors import DataError, LookhereError, UsageError

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
WHITE = 2**16 - 1
DIRECTORY = "1.2.840.10008.1.3.10"  # the SOP class of a DICOMDIR
INSTALL = "pip install 'lookhere[medical]'"


@dataclass(frozen=True)
class Rendering:
    """How the grey levels of one image were made, step by step."""

    transfer_syntax: str
    """How the pixels were stored."""
    bits: int
    """BitsStored: the stored values have this many bits."""
    modality: str
    """Modality LUT, rescale slope and intercept, or none."""
    voi: str
    """VOI LUT or window, and which of how many; or none, with the range that was scaled."""
    inverted: bool
    """MONOCHROME1, where low values are white."""
    padding: int
    """Number of padding pixels, which became black."""


def read_dicom(path: Path, window: int = 0) -> tuple[np.ndarray, Rendering]:
    """Render a DICOM image of one grey frame.

    Args:
        path: DICOM file.
        window: which of the image's own views is taken, counted from 0: its VOI LUTs first, then its windows.

    Returns:
        ``h w`` uint16, 0 = black and 65535 = white, and how it was rendered.

    Raises:
        DataError: not DICOM, a DICOMDIR, without pixel data, truncated, of several frames, in colour, of more than 16
            bits, too large, or without the window asked for. The message has the reason only: the caller knows the
            file.
        UsageError: pydicom, or what it needs to decompress the file, is not installed.
    """
    with _reasons(path):
        dataset = _header(path, pixels=True)
        photometric = str(dataset.get("PhotometricInterpretation", "nothing"))
        if photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise DataError(f"PhotometricInterpretation is {photometric}; expected MONOCHROME1 or MONOCHROME2 (grey)")
        bits = int(dataset.BitsStored)
        if not 1 <= bits <= 16:
            raise DataError(f"BitsStored is {bits}; expected 1 to 16")
        low = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
        levels, modality = _modality(dataset, np.arange(low, low + 2**bits, dtype=np.float64))
        grey, voi = _voi(dataset, levels, window)
        inverted = photometric == "MONOCHROME1"
        table = np.rint((1 - grey if inverted else grey) * WHITE).astype(np.uint16)

        values = _pixels(dataset)
        padded = _padding(dataset, values)
        inside = values[~padded] if padded.any() else values
        if inside.size and (inside.min() < low or inside.max() >= low + 2**bits):
            found = f"stored values from {inside.min()} to {inside.max()}"
            raise DataError(f"{found}; expected {low} to {low + 2**bits - 1} (BitsStored = {bits})")
        image = table[np.where(padded, low, values).astype(np.int32) - low]
        image[padded] = 0
        syntax = dataset.file_meta.TransferSyntaxUID.name
        return image, Rendering(syntax, bits, modality, voi, inverted, int(padded.sum()))


def dicom_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of a DICOM image from its header alone.

    Raises:
        DataError: as ``read_dicom`` does, except for what only the pixels tell.
        UsageError: pydicom is not installed.
    """
    with _reasons(path):
        dataset = _header(path, pixels=False)
        return int(dataset.Columns), int(dataset.Rows)


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    try:
        yield
    except LookhereError:
        raise
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})") from None
    except Exception as error:  # pydicom raises about anything on damaged files: ValueError, struct.error, KeyError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot be decoded ({reason})") from None


def _header(path: Path, pixels: bool) -> Dataset:
    """Return the elements of one grey or coloured frame, after all that must be refused has been."""
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise UsageError(f"DICOM images need the package pydicom, which is not installed; run: {INSTALL}") from None
    try:
        dataset = dcmread(path, stop_before_pixels=not pixels)
    except InvalidDicomError:
        if path.stat().st_size == 0:
            raise DataError("empty (0 bytes); expected a DICOM file") from None
        raise DataError("not a DICOM file (no DICM mark after the first 128 bytes)") from None
    if dataset.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
        raise DataError("a DICOMDIR, the table of contents of a disc; expected the file of one image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"{frames} frames; expected a file with one")
    if "Rows" not in dataset or "Columns" not in dataset or (pixels and "PixelData" not in dataset):
        raise DataError("no pixel data; it is not an image, or the file is cut off")
    limit = Image.MAX_IMAGE_PIXELS
    if limit and dataset.Rows * dataset.Columns > limit:
        raise DataError(f"{dataset.Columns} x {dataset.Rows} pixels; the limit is {limit:,} pixels in all")
    return dataset


def _pixels(dataset: Dataset) -> np.ndarray:
    """Return the stored values, ``h w`` integers."""
    from pydicom.pixels import get_decoder, pixel_array

    # Unless told otherwise pydicom cuts off the bits above BitsStored, so that values too large for it wrap around.
    # Negative numbers need that, since their sign may or may not fill the bits above.
    decode = partial(pixel_array, dataset, correct_unused_bits=bool(dataset.PixelRepresentation))
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        found, whole = len(dataset.PixelData), dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        if found < whole:
            raise DataError(f"cut off: {found:,} of {whole:,} bytes of pixel data")
        return decode()
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise DataError(f"compressed as {syntax.name}, which pydicom does not read") from None
    more = f"the package python-gdcm decompresses it; run: {INSTALL}"
    if not available:
        raise UsageError(f"compressed as {syntax.name}; {more}")
    try:
        return decode()
    except RuntimeError as error:  # every decoder that is installed has failed, each with a line of its own
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:]) or str(error)
        hint = "" if "gdcm" in reasons else f"; if it is not damaged, {more}"
        raise DataError(f"compressed as {syntax.name}, which cannot be decoded ({reasons}){hint}") from None


def _modality(dataset: Dataset, levels: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the modality values of the stored values ``levels``, the lowest and highest possible ones included."""
    if dataset.get("ModalityLUTSequence"):
        values, depth = _look_up(dataset, dataset.ModalityLUTSequence[0], levels)
        return values, f"LUT of {depth} bits"
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return levels, "none"
    return levels * float(slope) + float(intercept), f"slope {slope}, intercept {intercept}"


def _voi(dataset: Dataset, levels: np.ndarray, index: int) -> tuple[np.ndarray, str]:
    """Return the grey levels in [0, 1] of the modality values ``levels``, by the view chosen by ``index``."""
    luts = list(dataset.get("VOILUTSequence") or [])
    centres, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    if len(centres) != len(widths):
        raise DataError(f"{len(centres)} WindowCenter and {len(widths)} WindowWidth; expected as many of both")
    windows = list(zip(centres, widths, strict=True))
    views: list[Callable[[np.ndarray], tuple[np.ndarray, str]]] = [
        *(partial(_voi_lut, dataset, item) for item in luts),
        *(partial(_window, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR")) for centre, width in windows),
    ]
    if not views and index == 0:
        low, high = _possible(dataset, levels)
        return (levels - low) / (high - low), f"none: {low:g} to {high:g}"
    if index not in range(len(views)):
        found = f"{len(luts)} VOI LUTs and {len(windows)} windows"
        raise DataError(f"no view number {index}: it has {found}, and they are counted from 0")
    grey, name = views[index](levels)
    return grey, f"{name}, {index + 1} of {len(views)}"


def _possible(dataset: Dataset, levels: np.ndarray) -> tuple[float, float]:
    """Return the lowest and highest value that the modality step can give."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    if levels.min() == levels.max():
        raise DataError("RescaleSlope is 0, which makes every pixel the same; expected another number")
    return float(levels.min()), float(levels.max())


def _window(centre: float, width: float, function: str, levels: np.ndarray) -> tuple[np.ndarray, str]:
    """Return a window's grey levels in [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    least = 1 if function == "LINEAR" else 0
    if width < least or (width == 0 and function != "LINEAR"):
        expected = "at least 1" if least else "above 0"
        raise DataError(f"WindowWidth is {width:g}; expected {expected} for {function}")
    name = f"window: centre {centre:g}, width {width:g}, {function}"
    if function == "LINEAR":
        if width == 1:
            return (levels > centre - 0.5).astype(np.float64), name
        return np.clip((levels - (centre - 0.5)) / (width - 1) + 0.5, 0, 1), name
    if function == "LINEAR_EXACT":
        return np.clip((levels - centre) / width + 0.5, 0, 1), name
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (levels - centre) / width)), name
    raise DataError(f"VOILUTFunction is {function}; expected LINEAR, LINEAR_EXACT or SIGMOID")


def _voi_lut(dataset: Dataset, item: Dataset, levels: np.ndarray) -> tuple[np.ndarray, str]:
    values, depth = _look_up(dataset, item, levels)
    return values / (2**depth - 1), f"LUT of {depth} bits"


def _look_up(dataset: Dataset, item: Dataset, levels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the entries (float64) of a modality or VOI LUT for ``levels``, and how many bits they have."""
    entries, first, depth = (int(value) for value in item.LUTDescriptor)
    entries = entries or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        little = dataset.original_encoding[1] is not False
        data = np.frombuffer(data, "u1" if len(data) < 2 * entries else "<u2" if little else ">u2")
    table = np.atleast_1d(np.asarray(data, np.float64))[:entries]
    if not 1 <= depth <= 16 or len(table) < entries or table.max() > 2**depth - 1:
        found = f"{len(table)} entries up to {table.max():g}"
        raise DataError(f"a LUT has {found}; its LUTDescriptor tells of {entries} entries of {depth} bits")
    return table[np.clip(np.rint(levels) - first, 0, entries - 1).astype(np.int64)], depth


def _padding(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Return which pixels (``h w`` bool) are padding: outside the exposed field, and to be black."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(values.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (values >= low) & (values <= high)


def _numbers(dataset: Dataset, name: str) -> list[float]:
    """Return the values of an element that may be absent, empty, one number or several."""
    value = dataset.get(name)
    if value is None or value == "":
        return []
    return [
        float(number) for number in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])
    ]

"""Reads what annotation files hold, value by value, and says what is wrong with one in a sentence."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lookhere.data.importers.maps import MapMaker, mask_map
from lookhere.errors import DataError, UsageError

FAR = 1e7
"""Pixels; a coordinate beyond is a mistake."""


def annotation_files(paths: Sequence[Path], suffix: str) -> list[Path]:
    """Return the files among ``paths``, and those with ``suffix`` in the folders among them, subfolders included.

    Raises:
        UsageError: a folder holds no such file.
    """
    files = []
    for path in paths:
        found = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"{path}: no {suffix} file in this folder; expected what the annotation tool exports")
        files += found
    return files


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from None
    except RecursionError:
        raise DataError(f"{path}: not valid JSON (nested too deeply)") from None
    except ValueError as error:  # also text that is not UTF-8
        raise DataError(f"{path}: not valid JSON ({error})") from None


def records(value: object, name: str) -> list[dict[str, Any]]:
    """Return a list of JSON objects as one; a missing list is empty.

    Raises:
        DataError: it is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{name} is {reprlib.repr(value)}; expected a list of objects")
    return value


def number(value: Any, name: str) -> float:
    """Return a finite number.

    Raises:
        DataError: it is something else.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = np.nan
    if not abs(found) <= FAR:
        what = "missing" if value is None else reprlib.repr(value)
        raise DataError(f"{name} is {what}; expected a number of at most {FAR:,.0f}")
    return found


def whole(value: Any, name: str) -> int:
    """Return a whole number.

    Raises:
        DataError: it is something else.
    """
    found = number(value, name)
    if found != int(found):
        raise DataError(f"{name} is {value}; expected a whole number")
    return int(found)


def corners(values: object) -> np.ndarray:
    """Return points as ``n 2`` float64.

    Raises:
        DataError: they are something else.
    """
    try:
        points = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or not (np.abs(points) <= FAR).all():
        raise DataError(f"points are {reprlib.repr(values)}; expected pairs (x, y) of numbers")
    return points


def integers(values: object, name: str, limit: int) -> np.ndarray:
    """Return a list of whole numbers from 0 to ``limit`` as int64.

    Raises:
        DataError: it is something else.
    """
    try:
        found = np.asarray(values)
    except ValueError:  # lists of different lengths
        found = np.empty(0)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() > limit:
        raise DataError(f"{name} is {reprlib.repr(values)}; expected a list of whole numbers from 0 to {limit}")
    return found.astype(np.int64)


def runs_map(
    runs: object, width: int, height: int, left: int = 0, top: int = 0, order: Literal["C", "F"] = "C"
) -> MapMaker:
    """Return the map of a run-length encoded mask.

    Args:
        runs: lengths of the runs of unmarked and marked pixels in turn, unmarked first.
        width: of the mask in pixels.
        height: of the mask in pixels.
        left: column of the mask in the image.
        top: row of the mask in the image.
        order: pixels follow each other along rows ("C") or along columns ("F").

    Raises:
        DataError: the runs are not whole numbers of at least 0 that add up to the pixels of the mask.
    """
    lengths = integers(runs, "the rle", width * height)
    covered = int(lengths.sum())
    if covered != width * height:
        raise DataError(f"the runs cover {covered} pixels; expected {width} x {height} = {width * height}")

    def make(columns: int, rows: int) -> np.ndarray:
        marked = np.arange(len(lengths)) % 2 == 1
        mask = np.repeat(marked, lengths).reshape((height, width), order=order)
        return mask_map(mask, left, top)(columns, rows)

    return make


def mask_runs(mask: np.ndarray) -> np.ndarray:
    """Return the runs of a bool array, flattened, as ``runs_map`` takes them."""
    changes = np.flatnonzero(np.diff(mask.ravel(), prepend=False))
    return np.diff(changes, prepend=0, append=mask.size)

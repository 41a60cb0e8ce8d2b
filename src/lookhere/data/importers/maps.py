"""Draws saliency maps: from fixations, polygons, ellipses, rectangles and masks.

Coordinates are pixels of the upright image, x to the right and y down. A map maker is called with the image's width and
height and returns the map, so that one map is in memory at a time.

Fixations follow the eye trackers: the pixel in column j and row i has its centre at (j, i). Shapes follow the
annotation tools: that pixel is the square from (j, i) to (j + 1, i + 1), and is marked if its centre is in the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from lookhere.errors import DataError, UsageError

MapMaker = Callable[[int, int], np.ndarray]
"""(width, height) of the upright image -> ``h w`` float32 in [0, 1]."""

SigmaUnit = Literal["px", "fraction", "degrees"]


def fixation_map(
    x: ArrayLike, y: ArrayLike, weight: ArrayLike = 1.0, sigma_x: ArrayLike = 1.0, sigma_y: ArrayLike | None = None
) -> MapMaker:
    """Return the sum of one Gaussian for each fixation, divided by its maximum.

    ``s(u, v) = Σ_k weight_k exp(-(u - x_k)² / 2 sigma_x_k² - (v - y_k)² / 2 sigma_y_k²)``, without truncation. All
    Gaussians have height 1; where sigmas differ and equal mass is wanted, divide the weights by ``sigma_x * sigma_y``.

    Args:
        x: n, pixels.
        y: n, pixels.
        weight: n or one for all, at least 0: 1 counts fixations, their duration weighs them.
        sigma_x: n or one for all, pixels, above 0.
        sigma_y: the same; by default ``sigma_x``.

    Raises:
        ValueError: something is not finite, a weight is negative, or a sigma is not above 0.
    """
    sigma_y = sigma_x if sigma_y is None else sigma_y
    columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(a, np.float64)) for a in (x, y, weight, sigma_x, sigma_y)))
    xs, ys, weights, widths, heights = columns
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError("fixations must be finite numbers")
    if (weights < 0).any() or (widths <= 0).any() or (heights <= 0).any():
        raise ValueError("weights must be at least 0 and sigmas above 0")

    def make(width: int, height: int) -> np.ndarray:
        # A Gaussian is the outer product of its two profiles, so their sum is one product of matrices.
        across = np.exp(-0.5 * ((np.arange(width) - xs[:, None]) / widths[:, None]) ** 2)
        down = weights[:, None] * np.exp(-0.5 * ((np.arange(height) - ys[:, None]) / heights[:, None]) ** 2)
        total = down.T.astype(np.float32) @ across.astype(np.float32)
        peak = total.max(initial=0)
        return np.asarray(np.minimum(total / peak, 1) if peak > 0 else total, np.float32)

    return make


def sigma_pixels(sigma: float, unit: SigmaUnit, width: int, pixels_per_degree: float | None = None) -> float:
    """Return a sigma in pixels of the image.

    Args:
        sigma: in ``unit``.
        unit: pixels of the image, fraction of its width, or degrees of visual angle.
        width: of the image in pixels.
        pixels_per_degree: pixels of the image that one degree covers; see ``pixels_per_degree``.

    Raises:
        UsageError: the unit is degrees and ``pixels_per_degree`` is not given.
    """
    if unit == "degrees":
        if pixels_per_degree is None:
            raise UsageError("pixels_per_degree: is required for a sigma in degrees")
        return sigma * pixels_per_degree
    return sigma * width if unit == "fraction" else sigma


def pixels_per_degree(distance: float, screen_width: float, screen_pixels: int) -> float:
    """Return how many pixels one degree of visual angle covers at the middle of a screen.

    Args:
        distance: from the eye to the screen.
        screen_width: in the same unit.
        screen_pixels: width of the screen in pixels.
    """
    return 2 * distance * math.tan(math.radians(0.5)) * screen_pixels / screen_width


def polygon_map(points: ArrayLike) -> MapMaker:
    """Return the inside of a polygon by the even-odd rule.

    Args:
        points: ``n 2`` (x, y) in pixels, n at least 3; the last is joined to the first. It may leave the image.

    Raises:
        ValueError: fewer than three points, or a coordinate that is not finite.
    """
    corners = np.asarray(points, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError("a polygon needs at least three points (x, y) of finite numbers")

    def make(width: int, height: int) -> np.ndarray:
        # Along a row of pixel centres, each crossed edge switches between outside and inside.
        switch = np.zeros((height, width + 1), bool)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            low, high = sorted((y0, y1))
            rows = np.arange(max(math.ceil(low - 0.5), 0), min(math.ceil(high - 0.5), height))
            if len(rows):
                crossing = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
                columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.intp)
                switch[rows, columns] ^= True
        return np.logical_xor.accumulate(switch, axis=1)[:, :width].astype(np.float32)

    return make


def rectangle_map(x: float, y: float, width: float, height: float, degrees: float = 0.0) -> MapMaker:
    """Return a rectangle, turned clockwise (as seen on the screen) about its top-left corner (x, y)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    return polygon_map(corners @ np.array([(cos, sin), (-sin, cos)]) + (x, y))


def ellipse_map(cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0) -> MapMaker:
    """Return an ellipse of radii rx and ry, turned clockwise (as seen on the screen) about its centre (cx, cy).

    Raises:
        ValueError: something is not finite, or a radius is not above 0.
    """
    if not all(map(math.isfinite, (cx, cy, rx, ry, degrees))) or rx <= 0 or ry <= 0:
        raise ValueError("an ellipse needs finite numbers and radii above 0")
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def make(width: int, height: int) -> np.ndarray:
        x, y = np.arange(width) + 0.5 - cx, np.arange(height)[:, None] + 0.5 - cy
        inside = ((cos * x + sin * y) / rx) ** 2 + ((cos * y - sin * x) / ry) ** 2 <= 1
        return np.asarray(inside, np.float32)

    return make


def mask_map(mask: np.ndarray, left: int = 0, top: int = 0) -> MapMaker:
    """Return a mask whose upper left pixel lies at column ``left`` and row ``top`` of the image, 0 elsewhere.

    Args:
        mask: ``h w`` bool, or float in [0, 1].
        left: column.
        top: row.

    The maker raises DataError if the mask leaves the image.
    """
    rows, columns = mask.shape

    def make(width: int, height: int) -> np.ndarray:
        if left < 0 or top < 0 or left + columns > width or top + rows > height:
            raise DataError(
                f"a mask of {columns} x {rows} pixels at column {left}, row {top} leaves the image of "
                f"{width} x {height} pixels"
            )
        whole = np.zeros((height, width), np.float32)
        whole[top : top + rows, left : left + columns] = mask
        return whole

    return make


def fitted(saliency: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return a map (``h w`` float32 in [0, 1]) at the size of its image: it may have been made at another.

    Raises:
        DataError: its aspect ratio is another one, by more than 2 % and the rounding to whole pixels.
    """
    rows, columns = saliency.shape
    if (columns, rows) == (width, height):
        return saliency
    slack = max(0.02 * max(width * rows, height * columns), max(width, height, rows, columns) / 2)
    if abs(width * rows - height * columns) > slack:
        raise DataError(f"{columns} x {rows} pixels, the image {width} x {height}; expected the same aspect ratio")
    resized = Image.fromarray(saliency).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized), 0, 1)


def union(*makers: MapMaker) -> MapMaker:
    """Return the largest value of several maps in each pixel; nothing is salient without any."""

    def make(width: int, height: int) -> np.ndarray:
        whole = np.zeros((height, width), np.float32)
        for maker in makers:
            np.maximum(whole, maker(width, height), out=whole)
        return whole

    return make

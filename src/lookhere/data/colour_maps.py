"""Recognises heat maps that were saved in the colours of a colour map, and reads their values back where that is safe.

Read as grey, a viridis map is distorted (its brightness is not linear), and a jet map is wrong (its brightness is not
even monotone, so the most salient pixels are darker than others).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.spatial import cKDTree

from lookhere.errors import DataError

MONOTONE = ("viridis", "plasma", "inferno", "magma", "cividis", "hot", "bone", "copper", "pink", "Reds", "YlOrRd")
"""Matplotlib's names; brightness rises or falls steadily, so blending neighbouring colours blends their values."""
OTHERS = ("jet", "turbo", "rainbow", "hsv", "nipy_spectral", "coolwarm", "Spectral")
"""Blending two of their colours gives a third one's: interpolated or compressed, they cannot be read back."""
TOLERANCE = 16.0  # distance in RGB that 95 % of the pixels keep, through JPEG too; an overlay is 24 away on average
EXACT = 2.0
FEW = 8


def values_of(colours: np.ndarray, invert: bool) -> np.ndarray:
    """Return the values of a coloured heat map, the lowest colour as 0 and the highest as 255.

    A reversed colour map has the same colours: the map then comes out inverted, which its mean coverage shows.

    Args:
        colours: ``h w 3`` uint8, not all grey.
        invert: read the values back; otherwise every coloured map is refused.

    Returns:
        ``h w`` float32 in [0, 255].

    Raises:
        DataError: the colours are to be refused, belong to a colour map that is not monotone, or to none.
    """
    codes = colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, inverse, count = np.unique(codes, return_inverse=True, return_counts=True)
    distinct = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
    name = _recognise(distinct, count)
    if name is None:
        raise DataError(
            "a coloured heat map in the colours of no known colour map (drawn over the image?); save it as grey, "
            "brighter = more salient"
        )
    if name not in MONOTONE:
        raise DataError(
            f"a coloured heat map ({name}), whose colours cannot be read back safely; save it as grey, brighter = more "
            "salient"
        )
    if not invert:
        raise DataError(
            f"a coloured heat map ({name}); save it as grey, brighter = more salient, or read its values back with "
            'saliency.colour_map = "invert"'
        )
    values = np.asarray(_tree(name).query(distinct)[1], np.float32)
    return values[inverse].reshape(colours.shape[:2])


def _recognise(colours: np.ndarray, count: np.ndarray) -> str | None:
    """Return the colour map whose curve through RGB the ``n 3`` colours keep closest to."""
    best, name = np.inf, None
    for candidate in (*MONOTONE, *OTHERS):
        tree = _tree(candidate)
        distance = np.asarray(tree.query(colours)[0])
        if len(colours) < FEW:
            # A red stroke on white has two colours of "hot"; a blank or two-valued heat map has its lowest.
            lowest = np.linalg.norm(colours - tree.data[0], axis=1).min()
            fits = max(distance.max(), lowest) <= EXACT
        else:
            fits = count[distance > TOLERANCE].sum() <= 0.05 * count.sum()
        mean = float(np.average(distance, weights=count))
        if fits and mean < best:
            best, name = mean, candidate
    return name


@cache
def _tree(name: str) -> cKDTree:
    from matplotlib import colormaps  # slow to import, and rarely needed

    return cKDTree(colormaps[name](np.arange(256), bytes=True)[:, :3].astype(np.float64))

"""Saliency maps that are files of their own, drawn over their images."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from lookhere.data.decode import ColourMap, map_values, read
from lookhere.data.files import EXTENSIONS
from lookhere.data.importers.maps import MapMaker, fitted
from lookhere.errors import DataError


def map_file(path: Path, colour_map: ColourMap = "refuse") -> MapMaker:
    """Return the map that a file holds: grey, 255 = salient, or strokes on a transparent layer, salient where drawn.

    The maker raises DataError for a file that cannot be read faithfully, and for one of another aspect ratio than its
    image; of another size, it is resized.
    """

    def make(width: int, height: int) -> np.ndarray:
        try:
            image = read(path)
            alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.mode in ("LA", "PA", "RGBA") else np.array(255)
            strokes = alpha.min() < 255
            saliency = np.asarray(alpha > 0, np.float32) if strokes else map_values(image, colour_map) / np.float32(255)
            return fitted(saliency, width, height)
        except DataError as error:
            raise DataError(f"its map {path}: {error}") from None

    return make


def maps_of(images: Sequence[tuple[str, str]], folder: Path, suffix: str, problems: list[str]) -> list[Path | None]:
    """Return each image's map in a flat folder: its name followed by ``suffix``, with any extension.

    Args:
        images: (relative path, place for messages).
        folder: of the maps.
        suffix: what follows the image's name in its map's.
        problems: gets images of one name that would share a map, images with two maps, and a folder without any.

    Raises:
        DataError: the folder cannot be listed.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); expected a folder of maps") from None
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension.lower() in EXTENSIONS:
            by_name[stem].append(name)
    first: dict[str, str] = {}
    found: list[Path | None] = []
    for image, place in images:
        stem = PurePosixPath(image).stem + suffix
        maps = by_name.get(stem, [])
        if len(maps) > 1:
            problems.append(f"{place}: '{image}' has {len(maps)} maps in {folder}: {', '.join(maps)}; expected one")
        if maps and (other := first.setdefault(stem, image)) != image:
            problems.append(f"{place}: '{image}' and '{other}' share the map {maps[0]} in {folder}; expected one each")
        found.append(folder / maps[0] if maps else None)
    if images and not any(found):
        problems.append(f"{folder}: no file has the name of an image followed by '{suffix}'; check maps and suffix")
    return found

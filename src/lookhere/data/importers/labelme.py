"""LabelMe's JSON files, one for each image: polygons, rectangles, circles and masks.

Coordinates are pixels. A rectangle is two opposite corners, a circle its centre and a point of its rim, a mask the
corner pixels of its box and a PNG of it.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from lookhere.data.importers import annotation_examples
from lookhere.data.importers.annotations import AnnotationOptions, Gallery
from lookhere.data.importers.base import Importer, Ledger, Sample
from lookhere.data.importers.lookup import short_names
from lookhere.data.importers.maps import MapMaker, ellipse_map, polygon_map, rectangle_map
from lookhere.data.importers.parse import annotation_files, corners, mask_runs, read_json, records, runs_map, whole
from lookhere.errors import DataError


def read(paths: Sequence[Path], options: AnnotationOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images with one map for each JSON file that is about them; the observer is the path that was given."""
    gallery = Gallery(options, ledger)
    observers = short_names(paths)
    files = [(path, observers[place]) for place in paths for path in annotation_files([place], ".json")]
    for path, observer in files:
        content = read_json(path)
        try:
            if not isinstance(content, dict) or not {"shapes", "imagePath"} <= content.keys():
                raise DataError("expected the keys shapes and imagePath of LabelMe")
            _read_file(path, content, observer, gallery)
        except DataError as error:
            gallery.invalid(str(path), str(error))
    ledger.facts.update(coordinate_space="pixels")
    yield from gallery.finish()


def _read_file(path: Path, content: dict[str, Any], observer: str, gallery: Gallery) -> None:
    row = gallery.row(str(path), _image_name(path, content["imagePath"], gallery.options.images))
    size = (content.get("imageWidth"), content.get("imageHeight"))
    if row is None:
        return
    marks = gallery.marks(row, path, observer, str(path), None if None in size else size)
    if marks is None:
        return
    for i, shape in enumerate(records(content["shapes"], "shapes"), start=1):
        kind = str(shape.get("shape_type") or "polygon")  # LabelMe 3 had nothing else
        draw = DRAW.get(kind)
        if draw is None:
            gallery.ledger.drop(f"shape of type {kind}, which has no area", f"{path}, shape {i}")
        else:
            marks.add(kind, [str(shape.get("label") or "")], partial(draw, shape), f"{path}, shape {i}")


def _image_name(path: Path, written: object, images: Path) -> str:
    """Return the image's path below ``images``, or its name if it lies beside the JSON file.

    Raises:
        DataError: it is no path, or leads to another place.
    """
    if not isinstance(written, str) or not written:
        raise DataError(f"imagePath is {written!r}; expected the path of an image")
    windows = PureWindowsPath(written)  # takes / and \ alike
    name = os.path.normpath(windows.as_posix())
    if not windows.anchor and not name.startswith(".."):
        return name
    inside = os.path.relpath(os.path.realpath(path.parent / name), os.path.realpath(images))
    if windows.drive or inside.startswith(".."):
        raise DataError(f"imagePath '{written}' leads out of the folder of images, {images}; expected a path below it")
    return inside


def _points(shape: dict[str, Any], count: int) -> np.ndarray:
    points = corners(shape.get("points"))
    if len(points) != count:
        raise DataError(f"has {len(points)} points; expected {count}")
    return points


def _polygon(shape: dict[str, Any]) -> MapMaker:
    return polygon_map(corners(shape.get("points")))


def _rectangle(shape: dict[str, Any]) -> MapMaker:
    first, second = _points(shape, 2)
    return rectangle_map(*first, *(second - first))


def _circle(shape: dict[str, Any]) -> MapMaker:
    centre, rim = _points(shape, 2)
    radius = float(np.hypot(*(rim - centre)))
    return ellipse_map(centre[0], centre[1], radius, radius)


def _mask(shape: dict[str, Any]) -> MapMaker:
    (left, top), (right, bottom) = _points(shape, 2)
    try:
        png = base64.b64decode(str(shape.get("mask")), validate=True)
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            if image.size != (right - left + 1, bottom - top + 1):
                raise DataError(
                    f"has a PNG of {image.width} x {image.height} pixels; "
                    f"expected {right - left + 1:g} x {bottom - top + 1:g}, as its corners say"
                )
            mask = np.asarray(image.convert("L")) > 0
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise about anything on damaged files
        raise DataError(f"its PNG cannot be decoded ({error})") from None
    return runs_map(mask_runs(mask), mask.shape[1], mask.shape[0], whole(left, "left"), whole(top, "top"))


DRAW = {
    "polygon": _polygon,
    "oriented_rectangle": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _mask,
}


IMPORTERS = (
    Importer(
        name="labelme",
        title="LabelMe",
        request="Your own annotations: the JSON files that LabelMe saves. See https://github.com/wkentaro/labelme.",
        licence="That of your data.",
        Options=AnnotationOptions,
        read=read,
        example=annotation_examples.labelme,
        example_arguments=("{folder}/annotations", "--set", "images={folder}/images"),
    ),
)

"""CVAT's export "for images 1.1": polygons, boxes, ellipses and brush masks.

Coordinates are pixels. Boxes and ellipses turn clockwise about their centres. A mask is run-length encoded along the
rows of its own box, unmarked pixels first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lookhere.data.importers import annotation_examples
from lookhere.data.importers.annotations import AnnotationOptions, Gallery, Marks
from lookhere.data.importers.base import Importer, Ledger, Sample
from lookhere.data.importers.lookup import short_names
from lookhere.data.importers.maps import MapMaker, ellipse_map, polygon_map, rectangle_map
from lookhere.data.importers.parse import annotation_files, corners, number, runs_map, whole
from lookhere.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read(paths: Sequence[Path], options: AnnotationOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images with one map for each file that marks something in them: a file is an annotator."""
    gallery = Gallery(options, ledger)
    files = annotation_files(paths, ".xml")
    for path, observer in short_names(files).items():
        for image in _images(path):
            where = f"{path}, image {image.get('id')}"
            name = image.get("name")
            if not name:
                gallery.invalid(where, "no name; expected the path of an image")
                continue
            row = gallery.row(where, name)
            # An export lists all images of its task, done or not: one without shapes says nothing.
            if row is None or not len(image):
                continue
            marks = gallery.marks(row, path, observer, where, (image.get("width"), image.get("height")))
            if marks is not None:
                _read_shapes(image, marks)
    ledger.facts.update(coordinate_space="pixels", observers=len(files))
    yield from gallery.finish()


def _images(path: Path) -> Iterator[Element]:
    """Yield the image elements of an export, one in memory at a time."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, iterparse

    try:
        root = None
        for event, element in iterparse(path, events=("start", "end"), forbid_dtd=True):
            if root is None:
                root = element
                if root.tag != "annotations":
                    raise DataError(f"{path}: its root is <{root.tag}>; expected <annotations> of CVAT")
            elif element.tag == "track":
                raise DataError(f"{path}: has tracks of a video; export it as 'CVAT for images 1.1'")
            elif event == "end" and element.tag == "image":
                yield element
                root.clear()
    except DefusedXmlException:
        raise DataError(f"{path}: declares a document type or entities, which CVAT never does; refused") from None
    except (ParseError, LookupError) as error:  # an encoding that does not exist
        raise DataError(f"{path}: not valid XML ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected the annotations.xml of CVAT") from None


def _read_shapes(image: Element, marks: Marks) -> None:
    for i, shape in enumerate(image, start=1):
        where = f"{marks.where}, shape {i}"
        draw = DRAW.get(shape.tag)
        if draw is None:
            if shape.tag != "tag":  # a label of the whole image
                marks.gallery.ledger.drop(f"shape of type {shape.tag}, which has no area", where)
        elif shape.tag == "mask" and (shape.get("rle") or "0").strip() == "0":
            marks.gallery.ledger.drop("empty mask", where)
        else:
            marks.add(shape.tag, [shape.get("label") or ""], partial(draw, shape), where)


def _value(shape: Element, name: str) -> float:
    return number(shape.get(name), name)


def _polygon(shape: Element) -> MapMaker:
    return polygon_map(corners([pair.split(",") for pair in (shape.get("points") or "").split(";")]))


def _box(shape: Element) -> MapMaker:
    left, top, right, bottom = (_value(shape, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    degrees = number(shape.get("rotation") or 0, "rotation")
    # The corner from which rectangle_map turns, where turning about the centre has taken it.
    half = np.array([(right - left) / 2, (bottom - top) / 2])
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = np.array([left, top]) + half - (half[0] * cos - half[1] * sin, half[0] * sin + half[1] * cos)
    return rectangle_map(x, y, right - left, bottom - top, degrees)


def _ellipse(shape: Element) -> MapMaker:
    cx, cy, rx, ry = (_value(shape, name) for name in ("cx", "cy", "rx", "ry"))
    return ellipse_map(cx, cy, rx, ry, number(shape.get("rotation") or 0, "rotation"))


def _mask(shape: Element) -> MapMaker:
    left, top, width, height = (whole(shape.get(name), name) for name in ("left", "top", "width", "height"))
    runs = [whole(run, "a run of the rle") for run in (shape.get("rle") or "").split(",")]
    return runs_map(runs, width, height, left, top)


DRAW = {"polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask}


IMPORTERS = (
    Importer(
        name="cvat",
        title="CVAT, for images 1.1",
        request="Your own task or project: Export, CVAT for images 1.1. See https://docs.cvat.ai.",
        licence="That of your data.",
        Options=AnnotationOptions,
        read=read,
        example=annotation_examples.cvat,
        example_arguments=("{folder}/annotations.xml", "--set", "images={folder}/images"),
        extra="annotations",
    ),
)

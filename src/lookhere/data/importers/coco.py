"""COCO's instances JSON: polygons, and run-length encoded masks as lists or compressed strings.

Coordinates are pixels. A mask is encoded along the columns of the whole image, unmarked pixels first. pycocotools
decodes masks whose runs do not add up to the image without a word; here they are an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lookhere.data.importers import annotation_examples
from lookhere.data.importers.annotations import AnnotationOptions, Gallery
from lookhere.data.importers.base import Importer, Ledger, Sample
from lookhere.data.importers.lookup import short_names
from lookhere.data.importers.maps import MapMaker, polygon_map, rectangle_map, union
from lookhere.data.importers.parse import annotation_files, corners, number, read_json, records, runs_map
from lookhere.errors import DataError


class CocoOptions(AnnotationOptions):
    """How COCO annotations are read."""

    annotator: str | None = None
    """Key of an annotation that tells annotators apart ("id": each annotation is one); by default a file is one."""


def read(paths: Sequence[Path], options: CocoOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images with one map for each annotator who marked something in them."""
    gallery = Gallery(options, ledger)
    files = annotation_files(paths, ".json")
    for path, name in short_names(files).items():
        content = read_json(path)
        try:
            _read_file(path, content, name, options, gallery)
        except DataError as error:
            ledger.problems.append(f"{path}: {error}")
    ledger.facts.update(coordinate_space="pixels", annotator=options.annotator or "file")
    yield from gallery.finish()


def _read_file(path: Path, content: object, name: str, options: CocoOptions, gallery: Gallery) -> None:
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise DataError("expected the keys images and annotations of COCO's instances")
    names = {str(item.get("id")): str(item.get("name")) for item in records(content.get("categories"), "categories")}
    images: dict[str, tuple[int | None, tuple[Any, Any]]] = {}
    for image in records(content["images"], "images"):
        image_id = str(image.get("id"))
        if image_id in images:
            raise DataError(f"two images have the id {image_id}; expected one each")
        row = gallery.row(f"{path}, image {image_id}", str(image.get("file_name")))
        images[image_id] = row, (image.get("width"), image.get("height"))
    for annotation in records(content["annotations"], "annotations"):
        where = f"{path}, annotation {annotation.get('id')}"
        image_id = str(annotation.get("image_id"))
        if image_id not in images:
            gallery.invalid(where, f"image_id is {image_id}, which no image has")
            continue
        row, size = images[image_id]
        if row is None:
            continue
        annotator = str(annotation.get(options.annotator)) if options.annotator else ""
        if options.annotator and options.annotator not in annotation:
            gallery.invalid(where, f"has no '{options.annotator}', by which option annotator tells annotators apart")
            continue
        marks = gallery.marks(row, (path, annotator), annotator or name, where, size)
        if marks is not None and marks.size:
            category = str(annotation.get("category_id"))
            segmentation = annotation.get("segmentation")
            kind = "mask" if isinstance(segmentation, dict) else "polygon" if segmentation else "box"
            marks.add(kind, [names.get(category, category)], partial(DRAW[kind], annotation, *marks.size), where)


def _polygons(annotation: dict[str, Any], width: int, height: int) -> MapMaker:
    polygons = annotation["segmentation"]
    if not isinstance(polygons, list):
        raise DataError("segmentation; expected a list of polygons [x, y, x, y, …], or an object with size and counts")
    makers = []
    for flat in polygons:
        if not isinstance(flat, list) or len(flat) % 2:
            raise DataError("expected a list [x, y, x, y, …] for each polygon")
        makers.append(polygon_map(corners([flat[i : i + 2] for i in range(0, len(flat), 2)])))
    return union(*makers)


def _box(annotation: dict[str, Any], width: int, height: int) -> MapMaker:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise DataError("neither segmentation nor bbox; expected polygons, a mask, or [x, y, width, height]")
    return rectangle_map(*(number(value, "a value of bbox") for value in box))


def _mask(annotation: dict[str, Any], width: int, height: int) -> MapMaker:
    rle = annotation["segmentation"]
    size = rle.get("size")
    # The image's own size is bounded; a mask of another one is not even unpacked.
    if size != [height, width]:
        raise DataError(f"size is {size}; expected [height, width] of the image, [{height}, {width}]")
    counts = rle.get("counts")
    return runs_map(unpack(counts) if isinstance(counts, str) else counts, width, height, order="F")


DRAW = {"polygon": _polygons, "box": _box, "mask": _mask}


def unpack(text: str) -> list[int]:
    """Return the runs of a compressed mask (COCO API, common/maskApi.c, rleFrString).

    Each run is written in characters of 6 bits, from ``chr(48)`` on: 5 bits of the value, the lowest first, and one
    that says whether more follow. The highest bit of the value is its sign. From the fourth run on, the value is the
    difference to the run before the last.

    Raises:
        DataError: another character, or an end within a run.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError(f"counts are damaged at character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise DataError("counts are damaged; they end within a run")
    return runs


IMPORTERS = (
    Importer(
        name="coco",
        title="COCO instances",
        request="Your own annotations, exported as COCO instances by nearly every tool. See https://cocodataset.org/#format-data.",
        licence="That of your data.",
        Options=CocoOptions,
        read=read,
        example=annotation_examples.coco,
        example_arguments=("{folder}/instances.json", "--set", "images={folder}/images"),
    ),
)

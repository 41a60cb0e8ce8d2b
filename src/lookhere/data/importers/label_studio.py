"""Label Studio's JSON export: polygons, rectangles, ellipses and brush strokes of one or several annotators.

Coordinates are percent of the original size. A rectangle turns about its top-left corner and an ellipse about its
centre, clockwise and in pixels: percent of two axes cannot be turned. A brush stroke is a packed RGBA image; what is
not transparent is marked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lookhere.data.importers import annotation_examples
from lookhere.data.importers.annotations import AnnotationOptions, Gallery
from lookhere.data.importers.base import Importer, Ledger, Sample
from lookhere.data.importers.lookup import SUFFIXES
from lookhere.data.importers.maps import MapMaker, ellipse_map, polygon_map, rectangle_map
from lookhere.data.importers.parse import annotation_files, corners, mask_runs, number, read_json, records, runs_map
from lookhere.data.importers.rle_pack import unpack
from lookhere.errors import DataError

UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")
"""Label Studio puts eight hexadecimal digits before the name of an uploaded file."""


class LabelStudioOptions(AnnotationOptions):
    """How a Label Studio export is read."""

    field: str | None = None
    """Key of a task's data that holds the image; by default the only one that names an image file."""


def read(paths: Sequence[Path], options: LabelStudioOptions, ledger: Ledger) -> Iterator[Sample]:
    """Yield the images with one map for each annotation that was submitted."""
    gallery = Gallery(options, ledger)
    observers: set[str] = set()
    for path in annotation_files(paths, ".json"):
        tasks = read_json(path)
        if not isinstance(tasks, list) or not all(isinstance(task, dict) and "annotations" in task for task in tasks):
            raise DataError(f"{path}: expected a list of tasks with their annotations; export it as JSON, not JSON-MIN")
        uploads: dict[int, str] = {}
        for task in tasks:
            where = f"{path}, task {task.get('id')}"
            try:
                row = _find_image(_image_name(task.get("data"), options.field), where, gallery, uploads)
                if row is not None:
                    observers |= _read_annotations(records(task["annotations"], "annotations"), row, where, gallery)
            except DataError as error:
                gallery.invalid(where, str(error))
    ledger.facts.update(coordinate_space="percent of the original size", observers=len(observers))
    yield from gallery.finish()


def _find_image(name: str, where: str, gallery: Gallery, uploads: dict[int, str]) -> int | None:
    prefixed = UPLOADED.fullmatch(name)
    if not prefixed:
        return gallery.row(where, name)
    row = gallery.row(where, name, prefixed[1])
    # Two uploads may be two files of one name, of which only one is here.
    if row is not None and uploads.setdefault(row, name) != name:
        raise DataError(
            f"'{name}' and '{uploads[row]}' were uploaded under one name, '{prefixed[1]}'; expected one task"
        )
    return row


def _read_annotations(annotations: list[dict[str, Any]], row: int, where: str, gallery: Gallery) -> set[str]:
    """Add the annotations of a task, and return who made them."""
    observers = set()
    for i, annotation in enumerate(annotations, start=1):
        here = f"{where}, annotation {annotation.get('id', i)}"
        if annotation.get("was_cancelled"):
            gallery.ledger.drop("cancelled annotation (a skipped task)", here)
            continue
        who = annotation.get("completed_by")
        observer = str(who.get("email", who.get("id")) if isinstance(who, dict) else who)
        observers.add(observer)
        _read_results(records(annotation.get("result"), "result"), row, observer, here, gallery)
    return observers


def _read_results(results: list[dict[str, Any]], row: int, observer: str, where: str, gallery: Gallery) -> None:
    turned = next((result["image_rotation"] for result in results if result.get("image_rotation")), None)
    if turned is not None:
        what = f"the image was turned by {turned} degrees in Label Studio (image_rotation)"
        gallery.invalid(where, f"{what}; expected 0: turn the image file itself, and annotate it again")
        return
    sizes = ((result.get("original_width"), result.get("original_height")) for result in results)
    size = next((size for size in sizes if size[0] is not None), None)
    marks = gallery.marks(row, where, observer, where, size)
    if marks is None:
        return
    # One region may come as several results of one id: its outline, its label, a text about it.
    regions: dict[str, dict[str, Any]] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for i, result in enumerate(results):
        value, region, kind = result.get("value"), str(result.get("id", i)), str(result.get("type"))
        if not isinstance(value, dict):
            continue
        if kind.endswith("labels") and value.get(kind) is not None:
            named = value[kind]
            labels[region].update(map(str, named if isinstance(named, list) else [named]))
        if _kind(value):
            regions.setdefault(region, value)
        elif {"x", "vertices", "imageDataURL"} & value.keys():
            gallery.ledger.drop(f"region of type {kind}, which has no area", where)
    for region, value in regions.items():
        marks.add(_kind(value), sorted(labels[region]), partial(_draw, value, marks.size))


def _image_name(data: object, field: str | None) -> str:
    """Return the file name of a task's image, with the folders that tell something."""
    values = data if isinstance(data, dict) else {}
    names = {key: _file_name(value) for key, value in values.items() if isinstance(value, str)}
    if field is not None:
        if field not in names:
            raise DataError(f"no text '{field}' in its data; found {', '.join(map(repr, values)) or 'nothing'}")
        return names[field]
    images = {key: name for key, name in names.items() if name.lower().endswith(SUFFIXES)}
    if len(images) != 1:
        found = ", ".join(f"{key} = {name!r}" for key, name in images.items()) or "no image file"
        raise DataError(f"{found} in its data; set field to the key of the image")
    return next(iter(images.values()))


def _file_name(text: str) -> str:
    """Return the path in what Label Studio stores: an upload, a file of the local storage, a URL, or a path."""
    if not text.startswith("/data/") and "://" not in text:
        return text
    url = urlsplit(text)
    if "d" in (query := parse_qs(url.query)):  # /data/local-files/?d=folder/a.png
        return query["d"][0]
    path = unquote(url.path)
    return path.rsplit("/", 1)[-1] if path.startswith("/data/upload/") else path


def _kind(value: dict[str, Any]) -> str:
    """Return the shape of a region, "" if it has no area that could be salient."""
    if "rle" in value:
        return "brush"
    if "points" in value:
        return "polygon"
    if "radiusX" in value:
        return "ellipse"
    return "rectangle" if {"x", "width", "height"} <= value.keys() else ""


def _draw(value: dict[str, Any], size: tuple[int, int] | None) -> MapMaker:
    if size is None:
        raise DataError("original_width and original_height are missing")
    width, height = size
    kind = _kind(value)
    if kind == "brush":
        mask = unpack(value["rle"], width * height * 4).reshape(height, width, 4)[..., 3] > 0
        return runs_map(mask_runs(mask), width, height)
    if kind == "polygon":
        return polygon_map(corners(value["points"]) * (width / 100, height / 100))
    x, y = number(value.get("x"), "x") * width / 100, number(value.get("y"), "y") * height / 100
    degrees = number(value.get("rotation") or 0, "rotation")
    across, down = ("radiusX", "radiusY") if kind == "ellipse" else ("width", "height")
    right, low = number(value.get(across), across) * width / 100, number(value.get(down), down) * height / 100
    return (ellipse_map if kind == "ellipse" else rectangle_map)(x, y, right, low, degrees)


IMPORTERS = (
    Importer(
        name="label-studio",
        title="Label Studio, JSON export",
        request="Your own project: Export, JSON (not JSON-MIN). See https://labelstud.io/guide/export.html.",
        licence="That of your data.",
        Options=LabelStudioOptions,
        read=read,
        example=annotation_examples.label_studio,
        example_arguments=("{folder}/export.json", "--set", "images={folder}/images"),
    ),
)

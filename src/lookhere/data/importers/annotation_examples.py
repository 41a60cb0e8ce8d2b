"""Tiny projects in the layouts of the annotation tools: what ``lookhere data example`` writes, and the tests read."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lookhere.data.importers.parse import mask_runs
from lookhere.data.importers.rle_pack import pack

WIDTH, HEIGHT = 64, 48
DISC = 8
"""Radius in pixels of the disc in each image, which the annotations are about."""


def _images(folder: Path) -> list[tuple[str, int, int]]:
    """Write six grey images of each of two classes into ``folder``, each with a disc of radius ``DISC``.

    Returns:
        path below ``folder``, and the corner of pixels (x, y) about which its disc is drawn, for each image.
    """
    random = np.random.default_rng(0)
    images = []
    for label, brightness in (("attack", 250), ("real", 5)):
        (folder / label).mkdir(parents=True)
        for i in range(6):
            x, y = (int(random.integers(DISC, side - DISC)) for side in (WIDTH, HEIGHT))
            pixels = random.integers(90, 160, (HEIGHT, WIDTH), np.uint8)
            pixels[_disc(x, y)] = brightness
            path = f"{label}/{label}{i}.png"
            Image.fromarray(pixels).save(folder / path)
            images.append((path, x, y))
    return images


def _disc(x: int, y: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return the disc as ``height width`` bool."""
    rows, columns = np.indices((height, width)) + 0.5
    return np.asarray(np.hypot(columns - x, rows - y) < DISC)


def _ring(x: int, y: int) -> np.ndarray:
    """Return a polygon along the rim of the disc, ``24 2``."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * DISC + (x, y)).round(2)


def label_studio(folder: Path) -> None:
    """Write an export of uploaded images and two annotators, of whom the second skips every third image."""
    percent = np.array([100 / WIDTH, 100 / HEIGHT])

    def result(i: int, x: int, y: int) -> dict[str, Any]:
        centre, radius = (x, y) * percent, DISC * percent
        corner = (x + DISC, y - DISC) * percent  # a rectangle turned by 90 degrees about it
        turned = {"width": 2 * radius[0], "height": 2 * radius[1], "rotation": 90}
        shapes: tuple[tuple[str, dict[str, Any]], ...] = (
            ("polygon", {"points": (_ring(x, y) * percent).tolist(), "closed": True}),
            ("ellipse", {"x": centre[0], "y": centre[1], "radiusX": radius[0], "radiusY": radius[1], "rotation": 0}),
            ("rectangle", {"x": corner[0], "y": corner[1], **turned}),
            ("brush", {"format": "rle", "rle": pack(np.repeat(_disc(x, y) * np.uint8(255), 4))}),
        )
        kind, value = shapes[i % 4]
        return {
            "id": f"region{i}",
            "type": f"{kind}labels",
            "from_name": "label",
            "to_name": "image",
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "image_rotation": 0,
            "value": {**value, f"{kind}labels": ["salient"]},
        }

    tasks = []
    for i, (path, x, y) in enumerate(_images(folder / "images")):
        name = f"{i:08x}-{Path(path).name}"
        first = {"id": 100 + i, "completed_by": 1, "was_cancelled": False, "result": [result(i, x, y)]}
        second = {"id": 200 + i, "completed_by": 2, "was_cancelled": i % 3 == 2, "result": [result(i + 1, x, y)]}
        data = {"image": f"/data/upload/1/{name}"}
        tasks.append({"id": i + 1, "data": data, "file_upload": name, "annotations": [first, second]})
    (folder / "export.json").write_text(json.dumps(tasks))


def cvat(folder: Path) -> None:
    """Write the annotations.xml of a task, with shapes of four kinds."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "<version>1.1</version>"]
    for i, (path, x, y) in enumerate(_images(folder / "images")):
        left, top, right, bottom = x - DISC, y - DISC, x + DISC, y + DISC
        ring = ";".join(f"{u:.2f},{v:.2f}" for u, v in _ring(x, y))
        rle = ", ".join(map(str, mask_runs(_disc(DISC, DISC, 2 * DISC, 2 * DISC))))
        shapes = (
            f'<polygon label="salient" points="{ring}"/>',
            f'<ellipse label="salient" cx="{x}.00" cy="{y}.00" rx="{DISC}.00" ry="{DISC}.00"/>',
            f'<box label="salient" xtl="{left}.00" ytl="{top}.00" xbr="{right}.00" ybr="{bottom}.00" rotation="90.0"/>',
            f'<mask label="salient" rle="{rle}" left="{left}" top="{top}" width="{2 * DISC}" height="{2 * DISC}"/>',
        )
        lines += [f'<image id="{i}" name="{path}" width="{WIDTH}" height="{HEIGHT}">', shapes[i % 4], "</image>"]
    (folder / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))


def coco(folder: Path) -> None:
    """Write an instances.json with polygons, masks and boxes in turn."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (path, x, y) in enumerate(_images(folder / "images")):
        counts = mask_runs(_disc(x, y).T).tolist()
        shapes: tuple[Any, ...] = ([_ring(x, y).ravel().tolist()], {"size": [HEIGHT, WIDTH], "counts": counts}, [])
        box = [x - DISC, y - DISC, 2 * DISC, 2 * DISC]
        images.append({"id": i, "file_name": path, "width": WIDTH, "height": HEIGHT})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": box, "segmentation": shapes[i % 3]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "salient"}]}
    (folder / "instances.json").write_text(json.dumps(content))


def labelme(folder: Path) -> None:
    """Write one JSON file for each image, in a folder beside that of the images, with the backslashes of Windows."""
    images = _images(folder / "images")
    (folder / "annotations").mkdir()
    for i, (path, x, y) in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(_disc(DISC, DISC, 2 * DISC, 2 * DISC)).save(png, format="PNG")
        shapes: tuple[dict[str, Any], ...] = (
            {"shape_type": "polygon", "points": _ring(x, y).tolist()},
            {"shape_type": "rectangle", "points": [[x + DISC, y + DISC], [x - DISC, y - DISC]]},
            {"shape_type": "circle", "points": [[x, y], [x, y + DISC]]},
            {
                "shape_type": "mask",
                "points": [[x - DISC, y - DISC], [x + DISC - 1, y + DISC - 1]],
                "mask": base64.b64encode(png.getvalue()).decode(),
            },
        )
        content = {
            "version": "5.5.0",
            "shapes": [{"label": "salient", "group_id": None, **shapes[i % 4]}],
            "imagePath": "..\\images\\" + path.replace("/", "\\"),
            "imageData": None,
            "imageWidth": WIDTH,
            "imageHeight": HEIGHT,
        }
        (folder / "annotations" / f"{Path(path).stem}.json").write_text(json.dumps(content))

"""A project of an annotation tool: two images, what a tool exported of them, and the maps that are read of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.path import Path as Outline
from numpy.typing import ArrayLike
from PIL import Image

from lookhere.data.importers.base import Ledger
from lookhere.errors import DataError

W, H = 60, 40
TRIANGLE = [(6.3, 4.1), (48.2, 12.4), (24.1, 36.3)]


def inside(corners: ArrayLike) -> np.ndarray:
    """Return which pixel centres of a W x H image lie inside a polygon, as matplotlib has it."""
    rows, columns = np.indices((H, W)) + 0.5
    return Outline(np.asarray(corners)).contains_points(np.stack([columns.ravel(), rows.ravel()], axis=1)).reshape(H, W)


def oval(x: float, y: float, rx: float, ry: float, degrees: float) -> np.ndarray:
    """Return which pixel centres lie inside an ellipse turned about its centre, from 2,000 points of its outline."""
    t, turn = np.linspace(0, 2 * np.pi, 2000), np.exp(1j * np.radians(degrees))
    points = (rx * np.cos(t) + 1j * ry * np.sin(t)) * turn
    return inside(np.stack([points.real + x, points.imag + y], axis=1))


class Project:
    """Images a/1.png and b/2.png of W x H pixels, and what a tool reads of them."""

    def __init__(self, folder: Path, tool: ModuleType) -> None:
        self.folder, self.tool, self.ledger = folder, tool, Ledger()
        for name in ("a/1.png", "b/2.png"):
            (folder / "images" / name).parent.mkdir(parents=True)
            Image.new("L", (W, H)).save(folder / "images" / name)

    def write(self, content: object, name: str = "export.json") -> Path:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def maps(self, *paths: Path, size: tuple[int, int] = (W, H), **options: Any) -> dict[str, list[np.ndarray]]:
        self.ledger = Ledger()
        given = self.tool.IMPORTERS[0].Options(images=self.folder / "images", **options)
        samples = list(self.tool.read(paths, given, self.ledger))
        if self.ledger.problems:
            raise DataError(self.ledger.problems)
        return {sample.name: [make(*size) for make in sample.maps] for sample in samples}


def coco_json(segmentations: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 3, "file_name": "a/1.png", "width": W, "height": H}],
        "categories": [{"id": 1, "name": "salient"}],
        "annotations": [
            {"id": 50 + i, "image_id": 3, "category_id": 1, "segmentation": one, **more}
            for i, one in enumerate(segmentations)
        ],
    }


def cvat_xml(shapes: str, name: str = "a/1.png") -> str:
    image = f'<image id="0" name="{name}" width="{W}" height="{H}">{shapes}</image>'
    return f"<annotations><version>1.1</version>{image}</annotations>"

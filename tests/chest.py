"""What the tests of the chest importers share."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lookhere.data.importers import egd_cxr, mimic_cxr, reflacx
from lookhere.data.importers.base import Imported, Importer, import_dataset

EGD, REFLACX, MIMIC = (module.IMPORTERS[0] for module in (egd_cxr, reflacx, mimic_cxr))
ONE = "00000001-00000001-00000001-00000001-00000001"
"""An image in each example: of 250 x 305 pixels."""


def example(importer: Importer, folder: Path) -> Path:
    importer.example(folder / importer.name)
    return folder / importer.name


def run(importer: Importer, folder: Path, **options: object) -> Imported:
    if importer is not MIMIC:
        options = {"images": folder / "images", **options}
    out = folder.parent / f"{folder.name}-{len(list(folder.parent.iterdir()))}"
    return import_dataset(importer, [folder], importer.Options(**options), out)


def rows(path: Path) -> list[dict[str, str]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def rewrite(path: Path, change: Callable[[dict[str, str]], dict[str, str] | None]) -> None:
    """Change or leave out (None) the records of a CSV file."""
    kept = [changed for row in rows(path) if (changed := change(row)) is not None]
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, kept[0])
        writer.writeheader()
        writer.writerows(kept)


def saliency(imported: Imported, dicom: str) -> np.ndarray:
    files = [file for file in imported.manifest.parent.glob("maps/**/*.png") if file.stem == dicom]
    return np.asarray(Image.open(files[0])).astype(float)


def facts(imported: Imported) -> dict[str, object]:
    return json.loads((imported.manifest.parent / "provenance.json").read_text())["facts"]


def gaussians(size: tuple[int, int], looks: list[tuple[float, ...]]) -> np.ndarray:
    """Return the literal sum over looks (x, y, height, sigma_x, sigma_y, left, top, right, bottom), maximum 1."""
    v, u = np.mgrid[: size[1], : size[0]]
    total = np.zeros((size[1], size[0]))
    for x, y, height, sigma_x, sigma_y, *box in looks:
        one = height * np.exp(-((u - x) ** 2) / (2 * sigma_x**2) - (v - y) ** 2 / (2 * sigma_y**2))
        if box:
            one[(u < box[0]) | (v < box[1]) | (u >= box[2]) | (v >= box[3])] = 0
        total += one
    return total / total.max()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])

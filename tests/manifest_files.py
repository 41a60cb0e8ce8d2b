"""Manifests to break: twelve images of two classes with their maps, and changes of single cells."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lookhere.data.manifest import DataOptions, Manifest, SaliencyOptions, read_manifest

HEADER = ["image", "label", "split", "saliency"]
SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 2 + ["test_print"] * 2
Rows = list[list[str]]
Change = Callable[[Rows], object]


def make_rows(folder: Path) -> Rows:
    """Return a sound manifest of 12 rows (2 to 13 in an editor), and write its files."""
    draw = np.random.default_rng(0)
    table = []
    for i, split in enumerate(SPLITS):
        name = f"{'attack' if i % 2 else 'real'}{i}.png"
        Image.fromarray(draw.integers(0, 256, (20, 20), np.uint8)).save(folder / name)
        Image.fromarray(np.tri(20, k=i, dtype=np.uint8) * 255).save(folder / f"map{i}.png")
        table.append([name, "attack" if i % 2 else "real", split, f"map{i}.png"])
    return table


def write(folder: Path, rows: Rows, header: list[str] | None = HEADER, name: str = "manifest.csv") -> Path:
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return folder / name


def load(path: Path, saliency: dict[str, object] | None = None, **data: object) -> Manifest:
    asked = {name: data.pop(name) for name in ("labelled", "classes", "training", "need_val") if name in data}
    return read_manifest(DataOptions(manifest=path, **data), SaliencyOptions(**(saliency or {})), **asked)


def contents(manifest: Manifest) -> tuple[object, ...]:
    return (
        manifest.classes,
        manifest.positive,
        [str(manifest.image_path(i)) for i in range(len(manifest))],
        manifest.label.tolist(),
        manifest.split.tolist(),
    )


def cell(row: int, column: int, value: str) -> Change:
    """A change of the cell in ``row``, counted as an editor does."""
    return lambda rows: rows[row - 2].__setitem__(column, value)


def every(column: int, old: str, new: str) -> Change:
    return lambda rows: [row.__setitem__(column, new) for row in rows if row[column] == old]
